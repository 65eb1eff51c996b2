"""Statistics of a sweep, and the pages and documents of sweeps, evaluations and quantizations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jobs.sweep.trials import trials_of
from tests.evaluation import NAN, evaluation
from tinymusician.evaluate.audio import decode_flac, encode_flac
from tinymusician.evaluate.bootstrap import Interval
from tinymusician.evaluate.claims import Verdict
from tinymusician.evaluate.report import AudioSample, html_report, markdown_report
from tinymusician.evaluate.report_tables import format_interval
from tinymusician.evaluate.results import run_metrics
from tinymusician.evaluate.sweep_claims import fluctuation, is_best, objective_claims, spread
from tinymusician.evaluate.sweep_report import html_sweep_report, markdown_sweep_report
from tinymusician.evaluate.sweep_results import Divergence, Grid, SeedResult, StudentMetrics, SweepResult, TrialCurves
from tinymusician.recipe import load_recipe


def test_fluctuation_is_the_detour_over_the_net_change() -> None:
    assert fluctuation([4, 3, 2, 1]) == 0
    assert fluctuation([1, 2, 3]) == 0
    assert fluctuation([4, 2, 3, 1]) == pytest.approx((2 + 1 + 2 - 3) / 3)
    assert fluctuation([4.0, 8.0, 4.0]) == float("inf")
    assert fluctuation([40, 20, 30, 10]) == fluctuation([4, 2, 3, 1])


def test_claim_needs_every_seed() -> None:
    assert is_best([1, 2], {"a": [3, 4], "b": [2.5, 9]}, -1).verdict == Verdict.HOLDS
    worse = is_best([3, 4], {"a": [1, 2], "b": [3, 5]}, -1)
    assert (worse.verdict, worse.evidence) == (Verdict.FAILS, "better: a")
    assert is_best([1, 4], {"a": [2, 3]}, -1).verdict == Verdict.UNDECIDED
    assert is_best([3, 4], {"a": [1, 2]}, 1).verdict == Verdict.HOLDS
    assert is_best([1], {"a": [1.01]}, -1).verdict == Verdict.UNDECIDED


def test_a_spread_is_the_lowest_and_highest_seed() -> None:
    assert spread([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0)
    assert spread([3.0]) == Interval(3.0)


def test_a_training_in_two_grids_is_one() -> None:
    recipe = load_recipe("paper-band", ("sweep.over=[objectives, skew, switch]", "sweep.seeds=2"))
    trials = trials_of(recipe)
    assert len(trials) == 2 * (6 + 4 + 4)
    same = {
        trial.model_id
        for trial in trials
        if trial.seed == 0 and trial.value in {"stage_mixed", "λ 0.1", "switch at 0.5"}
    }
    assert len(same) == 1
    assert len({trial.model_id for trial in trials}) == 2 * (6 + 3 + 3)
    assert {trial.recipe.training.seed for trial in trials} == {0, 1}


def training(kl: float, seed: int = 0) -> SeedResult:
    first = {"step": 0, "held_out/validation/loss": 2.0, "held_out/test/loss": 2.0, "held_out/test/kl": 2.0}
    rows = (first, {"step": 5, "loss": 1.5}, {**first, "step": 10, "held_out/test/kl": kl})
    return SeedResult(
        seed=seed,
        curves=TrialCurves(rows=rows),
        final=StudentMetrics(**dict.fromkeys(StudentMetrics.model_fields, kl)),
    )


def sweep(grid: Grid) -> SweepResult:
    """A result as rendering reads it: written as JSON, and read again."""
    claims = objective_claims(grid, "stage_mixed") if "stage_mixed" in grid else ()
    result = SweepResult(recipe="x", grids={"objectives": grid}, claims=claims, provenance={"seeds": "2"})
    return SweepResult.model_validate_json(result.model_dump_json())


def test_the_pages_of_a_sweep() -> None:
    result = sweep({"forward": (training(1.0), training(1.1)), "stage_mixed": (training(0.5), training(0.6))})
    verdicts = {claim.statement: claim.result for claim in result.claims}
    assert verdicts["best by forward KL on test prompts"].verdict == Verdict.HOLDS
    assert str(verdicts["best by CLAP score of its clips"]) == "does not hold (better: forward)"
    page = html_sweep_report(result)
    assert page.count("data:image/png") == 2
    assert "better: forward" in page
    assert "| stage_mixed | 0.550 [0.500, 0.600] |" in markdown_sweep_report(result)


def test_diverged_training_is_plotted() -> None:
    curves = TrialCurves(rows=training(1.0).curves.rows, diverged=Divergence(step=0, reason="loss is nan at step 8"))
    lost = training(NAN, seed=1).model_copy(update={"curves": curves})
    result = sweep({"forward": (training(1.0), lost)})
    line = "forward, seed 1, evaluated as of step 0: loss is nan at step 8"
    assert line in html_sweep_report(result)
    assert line in markdown_sweep_report(result)


def test_the_pages_of_an_evaluation() -> None:
    wave = np.sin(np.arange(8000) / 5).astype(np.float32)
    samples = [("a <fast> reel", [AudioSample("real", wave, 16_000, encode_flac(wave, 16_000))])]
    curves = {"<student>": [{"step": 2, "loss": 0.4}, {"step": 4, "loss": 0.3, "held_out/kl": 0.2}]}
    page = html_report(evaluation(), samples, curves, [("<bundle>", b"PNG")])
    assert page.count("data:audio/flac") == 1
    assert page.count("data:image/png") == 7
    assert "sensitivity of &lt;bundle&gt;" in page
    assert "a &lt;fast&gt; reel" in page
    assert "<student>" not in page
    assert "0.300<span>[0.200, 0.400]</span>" in page
    assert "bundle: FAD: 9 vectors; at least 129 are needed" in page
    text = markdown_report(evaluation())
    assert "| real | — | — | — | — | 0.800 [0.700, 0.900] | — | — | — | — |" in text
    assert "| embedding of FAD and KAD | kind clap |" in text


def test_metrics_that_are_not_finite_survive_json() -> None:
    student = evaluation().models[0]
    assert math.isnan(student.clap_by_clip[1])
    assert run_metrics(student)["kl"] == 0.5
    unknown = student.model_copy(update={"agreement": None})
    assert run_metrics(unknown)["kl"] is None


def test_audio_samples_survive_flac() -> None:
    wave = np.sin(np.arange(8000) / 5).astype(np.float32) / 2
    result, rate = decode_flac(encode_flac(wave, 16_000))
    assert rate == 16_000
    assert np.abs(result - wave).max() <= 1 / 32768


def test_intervals_as_text() -> None:
    assert format_interval(None) == "—"
    assert format_interval(Interval(12.345)) == "12.3"
    assert format_interval(Interval(0.1234, -0.1, 0.3), signed=True) == "+0.123 [-0.1, +0.3]"

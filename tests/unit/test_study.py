"""What a sweep says of curves and claims, what the paper's claims are judged by, and the pages that show them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from jobs.sweep.trials import trials_of
from tinymusician.evaluate.audio import encode_flac
from tinymusician.evaluate.report import AudioSample, html_report, markdown_report, shown
from tinymusician.evaluate.sweep_report import claims, fluctuation, html_study, markdown_study, spread, verdict
from tinymusician.recipe import load_recipe


def test_fluctuation_is_the_way_beside_the_way() -> None:
    assert fluctuation([4, 3, 2, 1]) == 0
    assert fluctuation([1, 2, 3]) == 0
    assert fluctuation([4, 2, 3, 1]) == pytest.approx((2 + 1 + 2 - 3) / 3)
    assert fluctuation([4.0, 8.0, 4.0]) == float("inf")
    assert fluctuation([40, 20, 30, 10]) == fluctuation([4, 2, 3, 1])


def test_a_verdict_needs_every_seed() -> None:
    assert verdict([1, 2], {"a": [3, 4], "b": [2.5, 9]}, -1) == "holds"
    assert verdict([3, 4], {"a": [1, 2], "b": [3, 5]}, -1) == "does not hold: better is a"
    assert verdict([1, 4], {"a": [2, 3]}, -1) == "cannot be told at this scale"
    assert verdict([3, 4], {"a": [1, 2]}, 1) == "holds"
    assert verdict([1], {"a": [1.01]}, -1) == "cannot be told at this scale"


def test_a_spread_is_the_lowest_and_highest_seed() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert spread([3.0]) == (3.0, None, None)


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


def seed(kl: float) -> dict[str, Any]:
    curves = [{"step": 0, "held_out/validation/loss": 2.0, "held_out/test/loss": 2.0, "held_out/test/kl": 2.0}]
    curves += [{"step": 5, "loss": 1.5}, {**curves[0], "step": 10, "held_out/test/kl": kl}]
    names = ("kl", "reverse_kl", "kad", "clap", "surprise", "test_loss", "fluctuation")
    return {"curves": curves, "final": dict.fromkeys(names, kl)}


def test_the_pages_of_a_sweep() -> None:
    grid = {"forward": [seed(1.0), seed(1.1)], "stage_mixed": [seed(0.5), seed(0.6)]}
    result = claims(grid, "stage_mixed")
    verdicts = dict(result)
    assert verdicts["best by forward KL on test prompts"] == "holds"
    assert verdicts["best by CLAP score of what it plays"] == "does not hold: better is forward"
    content = json.loads(json.dumps({"grids": {"objectives": grid}, "claims": result, "how": {"seeds": "2"}}))
    page = html_study("x", content)
    assert page.count("data:image/png") == 2
    assert "better is forward" in page
    assert "| stage_mixed | 0.550 [0.500, 0.600] |" in markdown_study("x", content)


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def evaluated(points: bool) -> dict[str, Any]:
    agreement = {name: interval(0.5) for name in ("forward", "reverse", "top_1", "surprise", "variety")}
    return {
        "clips": 9, "fad": interval(0.4), "fad_infinity": interval(0.3), "kad": interval(2.0),
        "fad_points": [[9, 0.4], [6, 0.5]] if points else None,
        "clap": {"score": interval(0.5), "shuffled": 0.1, "p_shuffled": 0.001},
        "clap_less_first": interval(0.0), "notes": [] if points else ["FAD: 9 vectors; at least 129 are needed"],
        "labels": {"tempo": {name: interval(0.2) for name in ("forward", "reverse", "agreement")}},
        "degenerate": {"any": 1, "silent": 1}, "bytes": 5_000_000,
        "agreement": {**agreement, "with_text": {"value": None, "low": None, "high": None},
                      "forward_by_codebook": [0.1, 0.2], "clips": 4},
        "cost": {"length": 5.0, "seconds": 1.0, "real_time_factor": 0.2, "lowest": 0.1, "highest": 0.3, "cpu": 1.5,
                 "memory": 4e8, "gpu_memory": None, "flops": None, "joules": None, "sizes": {"decoder": 5_000_000}},
    }  # fmt: skip


def test_the_pages_of_an_evaluation() -> None:
    clap = {"score": interval(0.8), "shuffled": None, "p_shuffled": None}
    models = {"real": {"clap": clap}, "<student>": evaluated(True), "bundle": evaluated(False)}
    worst = {"bundle": [{"clip": 3, "fad": 1.5, "prompt": "a slow jig"}]}
    content = {"models": models, "how": {"seed": 0, "embedding": {"kind": "clap"}}, "worst": worst}
    wave = np.sin(np.arange(8000) / 5).astype(np.float32)
    samples = [("a <fast> reel", [AudioSample("real", wave, 16_000, encode_flac(wave, 16_000))])]
    curves = {"<student>": [{"step": 2, "loss": 0.4}, {"step": 4, "loss": 0.3, "held_out/kl": 0.2}]}
    page = html_report("x", content, samples, curves, [("<bundle>", b"PNG")])
    assert page.count("data:audio/flac") == 1
    assert page.count("data:image/png") == 7
    assert "sensitivity of &lt;bundle&gt;" in page
    assert "a &lt;fast&gt; reel" in page
    assert "<student>" not in page
    assert "0.300<span>[0.200, 0.400]</span>" in page
    assert "bundle: FAD: 9 vectors; at least 129 are needed" in page
    text = markdown_report("x", content)
    assert "| real | — | — | — | — | 0.800 [0.700, 0.900] | — | — | — | — |" in text


def test_a_training_that_diverged_is_shown() -> None:
    lost = seed(1.0)
    lost["curves"] = [*lost["curves"][:2], {"step": 0, "diverged": "loss is nan at step 8"}]
    content = {
        "grids": {"objectives": {"forward": [{"seed": 0, **seed(1.0)}, {"seed": 1, **lost}]}},
        "claims": [],
        "how": {},
    }
    said = "forward, seed 1, judged as of step 0: loss is nan at step 8"
    assert said in html_study("x", content)
    assert said in markdown_study("x", content)


def test_figures_as_text() -> None:
    assert shown(None) == "—"
    assert shown({"value": 12.345, "low": None, "high": None}) == "12.3"
    assert shown({"value": 0.1234, "low": -0.1, "high": 0.3}, signed=True) == "+0.123 [-0.1, +0.3]"

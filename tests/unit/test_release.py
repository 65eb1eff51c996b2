"""Promotion by gates, with the signed evaluations of releases."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.release import promote, publish, release_metrics
from jobs.worker.model_refs import parse_label
from tests.evaluation import evaluation
from tests.world import World
from tinymusician.artifacts.attestations import ArtifactAttestation, EvaluationFigures, attest, write_figures
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import NotFoundError, UntrustedError
from tinymusician.evaluate.results import run_metrics
from tinymusician.recipe import PublishConfig

BASE = {"clap": 0.5, "fad": 0.2, "bytes": 1000, "degenerate": 0, "quiet": 0.02}


def candidate(world: World, **metrics: Any) -> Any:
    figures = {**BASE, "bytes": 450, **metrics}
    evaluation = {"run": "e", "own": figures, "baseline": {"model": "teacher", **BASE}}
    return publish(world.registry, world.made(decoder="one"), evaluation, PublishConfig())


def test_passing_release_is_promoted(world: World) -> None:
    source = candidate(world, clap=0.93 * 0.5, fad=1.095 * 0.2 - 1e-9)
    assert source.about["evaluation"]["own"]["clap"] == "0.465", "signed numbers are text"
    moved = promote(world.registry, source, "stable", PublishConfig(), None)
    assert moved.reference == "band@stable"
    assert moved.about["why"]["overridden"] is None
    assert [gate["passed"] for gate in moved.about["why"]["gates"]] == [True] * 5
    assert world.client().pull().release == moved


@pytest.mark.parametrize(
    ("figure", "gate"),
    [
        ({"clap": 0.464}, "clap"),
        ({"fad": 0.2191}, "fad"),
        ({"bytes": 451}, "size"),
        ({"degenerate": 1}, "degenerate"),
        ({"quiet": 0.041}, "quiet"),
        ({"quiet": None}, "quiet"),
    ],
)
def test_failing_gate_is_named(world: World, figure: dict[str, Any], gate: str) -> None:
    source = candidate(world, **figure)
    with pytest.raises(UntrustedError, match=rf"version 1: {gate}: .*--override REASON"):
        promote(world.registry, source, "stable", PublishConfig(), None)
    with pytest.raises(NotFoundError):
        world.registry.newest("band", "stable")
    moved = promote(world.registry, source, "stable", PublishConfig(), "it plays well")
    assert moved.about["why"]["overridden"] == "it plays well"


def test_an_evaluation_must_contain_both(world: World) -> None:
    run, reference = RunStore(world.store, "e1"), "band@sha256:" + "ab" * 32
    with pytest.raises(NotFoundError, match=r"run 'e1': has no evaluation"):
        release_metrics(world.store, "e1", reference, "teacher")
    run.write_report(evaluation())
    with pytest.raises(NotFoundError, match=r"run 'e1': has no evaluation"):
        release_metrics(world.store, "e1", reference, "teacher")
    figures = {parse_label(model.model_id)[1]: run_metrics(model) for model in evaluation().models}
    write_figures(world.store, EvaluationFigures(run="e1", models=figures, publish={}))
    with pytest.raises(
        NotFoundError, match=r"did not evaluate the artifact, .*; it evaluated <student>@sha256:00, bundle"
    ):
        release_metrics(world.store, "e1", reference, "teacher")
    metrics = release_metrics(world.store, "e1", "bundle@sha256:00", "<student>@sha256:00")
    assert (metrics["run"], metrics["own"]["clap"], metrics["baseline"]["model"]) == ("e1", 0.5, "<student>@sha256:00")
    assert list(metrics["own"]) == [
        "fad", "fad_infinity", "kad", "clap", "clap_shuffled", "kl", "degenerate", "quiet", "bytes", "real_time_factor",
    ]  # fmt: skip


ANSWERS = {
    "bundle_accuracy": 0.8,
    "accuracy": 0.805,
    "bundle_circular": 0.7,
    "controls_missing": 0,
    "controls_not_at_chance": 0,
}


@pytest.mark.parametrize(
    ("figure", "failure"),
    [
        ({}, None),
        ({"bundle_accuracy": 0.7, "accuracy": 0.7}, r"accuracy: 0\.7; at least 0\.75"),
        ({"bundle_circular": 0.6}, r"circular: 0\.6; at least 0\.65"),
        ({"accuracy": 0.82}, r"loss: 0\.02; at most 0\.01"),
        ({"controls_not_at_chance": 1}, "controls: 1; at most 0"),
        ({"controls_missing": 1}, "missing controls: 1; at most 0"),
        ({"bundle_circular": None}, "circular: was not measured"),
    ],
)
def test_bundle_that_answers_questions_has_gates_on_its_benchmark(
    world: World, figure: dict[str, Any], failure: str | None
) -> None:
    bundle = world.made(decoder="one").model_copy(update={"metrics": {**ANSWERS, **figure}})
    attest(world.store, ArtifactAttestation(artifact=bundle.reference, created=bundle.created))
    source = publish(world.registry, bundle, None, PublishConfig())
    if failure is None:
        moved = promote(world.registry, source, "stable", PublishConfig(), None)
        gates = [gate["gate"] for gate in moved.about["why"]["gates"]]
        assert gates == ["accuracy", "circular", "loss", "missing controls", "controls"]
        return
    with pytest.raises(UntrustedError, match=rf"version 1: {failure}\. Nothing was promoted"):
        promote(world.registry, source, "stable", PublishConfig(), None)

"""The aggregate step of a sweep: reads the cached trainings and evaluations, and writes report.json."""

from __future__ import annotations

import numpy as np

from jobs.evaluate.aggregate import model_features, recorded_features
from jobs.evaluate.steps import AGREEMENT_GROUP, chunk_ranges
from jobs.sweep.evaluator import SweepEvaluator
from jobs.sweep.trials import GRIDS, SweepTrial, trials_of
from tinymusician.artifacts.run_state import RunResult
from tinymusician.evaluate.clap_score import clap_score
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.kad import kad
from tinymusician.evaluate.reference_statistics import ReferenceStatistics
from tinymusician.evaluate.results import REAL
from tinymusician.evaluate.sweep_claims import fluctuation, objective_claims
from tinymusician.evaluate.sweep_results import Grid, SeedResult, StudentMetrics, SweepResult, TrialCurves
from tinymusician.recipe import Recipe

CLAIMED_OBJECTIVE = "stage_mixed"
NUM_FORCED_CLIPS = 16
"""Clips of each student that the teacher scores."""


def forced_groups(recipe: Recipe) -> list[range]:
    """The clips of each student that the teacher scores, by group."""
    return chunk_ranges(min(NUM_FORCED_CLIPS, sweep_clips(recipe)), AGREEMENT_GROUP)


def sweep_clips(recipe: Recipe) -> int:
    """The number of clips of each student."""
    return min(recipe.sweep.clips, recipe.evaluate.clips)


def aggregate(evaluator: SweepEvaluator) -> RunResult:
    """Compute all metrics, and write them to the run; returns the run's metrics.

    Raises:
        NotFoundError: trainings, features or measurements are missing.
    """
    recipe, run = evaluator.context.recipe, evaluator.context.run
    real = recorded_features(evaluator, REAL)
    reference = ReferenceStatistics.of(real.embeddings)
    prompts = evaluator.features.embed_prompts(evaluator.prompts(range(sweep_clips(recipe))))
    trainings: dict[str, tuple[TrialCurves, StudentMetrics]] = {}
    grids: dict[str, dict[str, list[SeedResult]]] = {
        grid: {value: [] for value in values} for grid, values in GRIDS.items() if grid in recipe.sweep.over
    }
    for trial in trials_of(recipe):
        if trial.model_id not in trainings:
            curves = evaluator.models.trainer.curves(trial)
            trainings[trial.model_id] = curves, _student_metrics(evaluator, trial, curves, reference, prompts)
        curves, final = trainings[trial.model_id]
        grids[trial.grid][trial.value].append(SeedResult(seed=trial.seed, curves=curves, final=final))
    results: dict[str, Grid] = {
        name: {value: tuple(seeds) for value, seeds in grid.items()} for name, grid in grids.items()
    }
    claims = objective_claims(results["objectives"], CLAIMED_OBJECTIVE) if "objectives" in results else ()
    result = SweepResult(recipe=recipe.name, grids=results, claims=claims, provenance=_provenance(evaluator))
    run.write_report(result)
    return RunResult(metrics={name: _means(grid) for name, grid in results.items()})


def _student_metrics(
    evaluator: SweepEvaluator, trial: SweepTrial, curves: TrialCurves, reference: ReferenceStatistics, prompts: Floats
) -> StudentMetrics:
    recipe = evaluator.context.recipe
    groups = chunk_ranges(sweep_clips(recipe), recipe.evaluate.batch_size)
    features = model_features(evaluator, trial.model_id, groups)
    forced = [evaluator.agreement(trial.model_id, group) for group in forced_groups(recipe)]
    validated = [row for row in curves.rows if "held_out/kl" in row]
    last = validated[-1]
    return StudentMetrics(
        kl=last["held_out/test/kl"],
        reverse_kl=last["held_out/test/reverse_kl"],
        agreement=last["held_out/test/agreement"],
        test_loss=last["held_out/test/loss"],
        fluctuation=fluctuation([row["held_out/validation/loss"] for row in validated]),
        kad=kad(features.embeddings, reference, resamples=0).value,
        clap=clap_score(features.clap, prompts[features.indices], shuffles=1).score.value,
        teacher_nll=float(np.concatenate([part["teacher_nll"] for part in forced]).mean()),
        code_entropy=float(np.concatenate([part["code_entropy"] for part in forced]).mean()),
    )


def _means(grid: Grid) -> dict[str, dict[str, float]]:
    """By value, the mean of every metric over the seeds."""
    return {
        value: {
            name: float(np.mean([getattr(seed.final, name) for seed in seeds])) for name in StudentMetrics.model_fields
        }
        for value, seeds in grid.items()
    }


def _provenance(evaluator: SweepEvaluator) -> dict[str, str]:
    recipe, record = evaluator.context.recipe, evaluator.context.record
    training = recipe.training
    return {
        "teacher": recipe.teacher.model,
        "student": str(recipe.student.model_dump()),
        "trainings": f"{training.steps} steps of {training.batch_size} sequences of {recipe.sequences.seconds:g} s",
        "seeds": str(recipe.sweep.seeds),
        "prompts": f"{sweep_clips(recipe)} captions of {evaluator.recordings.reference.provenance['reference']}",
        "models of KAD and CLAP": f"{recipe.evaluate.embedding.model_dump()}, {recipe.evaluate.clap}",
        "run": record.id,
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }

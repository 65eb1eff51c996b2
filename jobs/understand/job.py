"""The understand job: pretrain → generate-questions → train → benchmark; one artifact with model and questions.

Every stage of training has its own checkpoints, and finished stages are not repeated, so `--resume` continues inside
the stage that was interrupted.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.understand.data import UnderstandData
from jobs.worker.context import WorkerContext
from jobs.worker.ray_train import run_training_driver
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.json_types import JsonObject

if TYPE_CHECKING:
    from tinymusician.data.splits import Split
    from tinymusician.understand.benchmark import BenchmarkResult, SystemScore

QUESTIONS: dict[Split, str] = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "hard.jsonl"}
"""By split, the file of its questions in the artifact."""


def work(context: WorkerContext) -> None:
    """Run all stages of training in order, each from its own checkpoint."""
    from jobs.understand.generate_questions import generate_questions
    from jobs.understand.stages import (
        ANSWERS,
        TEXT_ONLY,
        train_answers,
        train_attributes,
        train_encoder,
        train_language,
    )

    data = UnderstandData(context)
    if data.pretrained_encoder is None:
        train_encoder(context, data)
        _end_stage(context)
    if data.finetunes_encoder:
        train_attributes(context, data)
        _end_stage(context)
    generate_questions(context, data)
    if data.config.train.language_steps:
        train_language(context, data)
        _end_stage(context)
    train_answers(context, data, ANSWERS)
    _end_stage(context)
    if data.config.train.text_only_steps:
        train_answers(context, data, TEXT_ONLY)
        _end_stage(context)


def finish(context: WorkerContext) -> RunResult:
    """Score the trained model, compress it into a bundle, score that, and publish both; the model has the questions."""
    from jobs.understand.benchmark import run_benchmark, run_probes
    from jobs.understand.bundle import write_bundle
    from jobs.understand.stages import ANSWERS, trained_model
    from tinymusician.models.audio_lm_files import save_audio_lm
    from tinymusician.understand.questions import write_questions
    from tinymusician.understand.report import html_report, markdown_report

    data, run = UnderstandData(context), context.run
    run.report_progress("probe", 0, 1)
    probes = run_probes(context, data)
    run.report_progress("benchmark", 0, 1)
    result = run_benchmark(context, data).model_copy(update={"probes": probes})
    metrics = {"probe": {**probes[-1].accuracies}, **_headline(result)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_audio_lm(folder, trained_model(context, data, ANSWERS), data.tokenizer.to_str())
        for split, file in QUESTIONS.items():
            write_questions(folder / file, data.questions(split))
        model = _publish(context, data, folder, "audio-lm", metrics)
    with tempfile.TemporaryDirectory() as name:
        search, score = write_bundle(context, data, Path(name), model.reference)
        metrics |= {"bundle_accuracy": score.overall.interval.value, "bundle_circular": _circular(score)}
        metrics |= {"bundle_size": search.chosen.size}
        bundle = _publish(context, data, Path(name), "audio-lm-bundle", metrics)
    result = result.model_copy(update={"bundle": score})
    run.write_report(result)
    run.write_rendered_report(html_report(result, context.recipe.name), markdown_report(result))
    metrics |= {"bundle": bundle.reference}
    return RunResult(artifact=model.reference, metrics=metrics, others=(bundle.reference,))


def run(run: RunStore) -> RunResult:
    """The driver: all workers run the stages, one scores the model and publishes it."""
    return run_training_driver(run, work, finish)


def _publish(context: WorkerContext, data: UnderstandData, folder: Path, kind: str, metrics: JsonObject) -> Manifest:
    record, suffix = context.record, "-bundle" if kind.endswith("-bundle") else ""
    return publish(
        context.run.store,
        folder,
        name=f"{context.recipe.name}{suffix}",
        kind=kind,
        recipe=record.recipe,
        lineage={"run": record.id, "versions": record.versions, "git": record.git, "seeds": record.seeds},
        metrics=metrics,
        licence=data.licence,
    )


def _headline(result: BenchmarkResult) -> JsonObject:
    """The figures of a model's score that thresholds and tables use; a control without an interval is not at chance."""
    from tinymusician.understand.benchmark import CONTROLS

    score = result.model
    figures = {attribute: each.interval.value for attribute, each in score.attributes.items()}
    leaks = sum(control.overall.contains_chance is not True for control in result.controls)
    accuracy = score.overall.interval.value
    missing = len(set(CONTROLS) - {control.name for control in result.controls})
    controls = {"controls_not_at_chance": leaks, "controls_missing": missing}
    return {"accuracy": accuracy, "circular": _circular(score), "groups": score.groups, **controls, **figures}


def _circular(score: SystemScore) -> float | None:
    return None if score.circular is None else score.circular.interval.value


def _end_stage(context: WorkerContext) -> None:
    gc.collect()  # the next stage needs the memory
    context.barrier()

"""The steps of an evaluation, and how they are divided into tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.worker.actor_pool import ActorFactory, ActorPool, stage_runner
from jobs.worker.model_refs import parse_label
from jobs.worker.resources import decide_device
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.recipe import EvaluateConfig, Recipe, parse_recipe

AGREEMENT_GROUP = 8
"""Clips that are compared with the teacher in one task: the logits of two passes are large."""


@dataclass(frozen=True)
class EvalTask:
    """A unit of work: what to do with some clips of a model, or of a source of `Recordings`."""

    kind: Literal["train", "check", "generate", "embed", "agreement", "cost", "aggregate", "render"]
    model_id: str = ""
    clips: range = range(0)


def evaluated_models(recipe: Recipe) -> list[str]:
    """The ids of the evaluated models, each once."""
    return list(dict.fromkeys(recipe.evaluate.models))


def chunk_ranges(count: int, size: int) -> list[range]:
    """The numbers from 0 to `count`, `size` at a time."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def clip_groups(config: EvaluateConfig) -> list[range]:
    """All clips, in the groups that are generated and embedded together."""
    return chunk_ranges(config.clips, config.batch_size)


def agreement_groups(config: EvaluateConfig) -> list[range]:
    """The clips on which models are compared with the teacher."""
    return chunk_ranges(min(config.agreement_clips, config.clips), AGREEMENT_GROUP)


def generate_tasks(model_ids: Sequence[str], clips: int, teacher_clips: int, batch_size: int) -> list[EvalTask]:
    """`clips` clips of every model and `teacher_clips` of the teacher; models with two labels count once."""
    counts = {"teacher": teacher_clips} | {parse_label(model_id)[1]: clips for model_id in model_ids}
    return [
        EvalTask("generate", model, group)
        for model, count in counts.items()
        for group in chunk_ranges(count, batch_size)
    ]


def recording_tasks(config: EvaluateConfig, sources: Mapping[str, int]) -> list[EvalTask]:
    """The embedding of the clips of sources, given by their numbers of clips (`count_recordings`)."""
    return [
        EvalTask("embed", source, group)
        for source, count in sources.items()
        for group in chunk_ranges(count, config.batch_size)
    ]


class StagePools:
    """The actors of a run, one pool at a time: on CPUs for what ONNX Runtime does, so that it holds no GPU."""

    def __init__(self, run: RunStore, factory: ActorFactory) -> None:
        self.run, self._factory = run, factory
        self.recipe = parse_recipe(run.record().recipe, run.id)
        self._device = decide_device(self.recipe.training.device)
        self._pool: ActorPool | None = None

    def run_stage(
        self, stage: str, tasks: Sequence[EvalTask], max_concurrency: int = 0, on_cpu: bool = False
    ) -> RunResult | None:
        """Run the tasks of a stage on the recipe's device, or on CPUs; returns the result that one of them computes."""
        device = "cpu" if on_cpu else self._device
        if self._pool is not None and self._pool.device != device:
            self._pool.scale_to(0)
            self._pool = None
        if self._pool is None:
            self._pool = ActorPool(self._factory, self.run, device="gpu" if device == "cuda" else "cpu")
        result = stage_runner(self._pool, self.run)(stage, tasks, max_concurrency)
        return result if isinstance(result, RunResult) else None

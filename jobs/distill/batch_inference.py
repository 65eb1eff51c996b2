"""Samples a run's sequences, and computes the teacher's signals on them, as independent tasks on a pool of actors.

A task is one shard. Idle actors take the next one, and a lost node costs the shards that it was working on.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

from jobs.distill.models import TeacherStudent, input_digests, load_models
from jobs.distill.teacher import ShardSet, sequence_shards, signal_shards
from jobs.worker.actor_pool import ActorPool
from jobs.worker.context import WorkerContext
from jobs.worker.same_inputs import Inputs, differing_inputs
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import ClusterError
from tinymusician.recipe import Recipe

Kind = Literal["sequences", "signals"]


@dataclass(frozen=True)
class FindMissing:
    """Find the shards of a kind that the store lacks."""

    kind: Kind


@dataclass(frozen=True)
class MakeShard:
    """Compute one shard, unless the store has it by now."""

    kind: Kind
    name: str
    index: int


@dataclass(frozen=True)
class TaskReport:
    """The result of a task: the actor's `inputs`, and the `missing` shards if they were looked for."""

    inputs: Inputs
    missing: list[MakeShard]


def needs_gang(recipe: Recipe) -> bool:
    """Whether several workers compute a shard together, which a pool of independent actors cannot do."""
    return recipe.teacher.tensor_parallel_size > 1


def compute_on_pool(run: RunStore, recipe: Recipe, kinds: Sequence[Kind]) -> None:
    """Compute the missing shards of each kind on one actor per worker of the run.

    A run with one worker, or whose workers share a teacher, leaves this to its workers.

    Raises:
        ClusterError: the actors' nodes have different inputs, or a task lost its actor too often.
    """
    if run.record().workers == 1 or needs_gang(recipe):
        return
    pool, inputs = ActorPool(TeacherWorker, run), _SameInputs()
    for kind in kinds:
        missing: list[MakeShard] = []
        pool.map([FindMissing(kind)], partial(_on_missing, inputs, missing))
        pool.map(missing, partial(_on_shard, run, inputs, kind, len(missing)))
    pool.scale_to(0)


def _on_missing(inputs: _SameInputs, missing: list[MakeShard], _: int, result: object) -> None:
    missing.extend(inputs.check(result).missing)


def _on_shard(run: RunStore, inputs: _SameInputs, kind: Kind, count: int, done: int, result: object) -> None:
    inputs.check(result)
    print(f"{kind}: {done} of {count} shards", flush=True)
    run.report_progress(kind, done, count)


class _SameInputs:
    """Compares the inputs of every actor as soon as it has done a task."""

    def __init__(self) -> None:
        self._inputs: list[Inputs] = []

    def check(self, result: object) -> TaskReport:
        """A task's report.

        Raises:
            ClusterError: its actor has read other files than another one.
        """
        assert isinstance(result, TaskReport)
        if result.inputs not in self._inputs:
            self._inputs.append(result.inputs)
        if problems := differing_inputs(self._inputs):
            raise ClusterError("; ".join(problems))
        return result


class TeacherWorker:
    """An actor's teacher."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context

    def run(self, task: FindMissing | MakeShard) -> TaskReport:
        """Run one task."""
        sets = self._sequences if task.kind == "sequences" else self._signals
        missing = []
        if isinstance(task, FindMissing):
            missing = [
                MakeShard(task.kind, name, index) for name, each in sets.items() for index in each.shards.missing()
            ]
        elif not (shards := sets[task.name].shards).contains(task.index):
            shards.write(task.index, sets[task.name].make(task.index))
        return TaskReport(self._inputs, missing)

    @cached_property
    def _pair(self) -> TeacherStudent:
        return load_models(self._context.recipe)

    @cached_property
    def _inputs(self) -> Inputs:
        return socket.gethostname(), input_digests(self._context.recipe, self._pair)

    @cached_property
    def _sequences(self) -> Mapping[str, ShardSet]:
        return sequence_shards(self._context, self._pair)

    @cached_property
    def _signals(self) -> Mapping[str, ShardSet]:
        from tinymusician.distill.sequences import shared_sampler

        shared_sampler.cache_clear()
        return signal_shards(self._context, self._pair)

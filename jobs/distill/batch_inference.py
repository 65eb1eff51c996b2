"""Samples a run's sequences, and computes the teacher's signals on them, as independent tasks on a pool of actors.

A task is one shard. Idle actors take the next one, and a lost node costs the shards that it was working on.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

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
class ReadInputs:
    """Read what the teacher's work depends on; the result is the node and the digests."""


@dataclass(frozen=True)
class FindMissing:
    """Find the shards of a kind that the store lacks; the result is a task for each."""

    kind: Kind


@dataclass(frozen=True)
class MakeShard:
    """Compute one shard, unless the store has it by now."""

    kind: Kind
    name: str
    index: int


Task = ReadInputs | FindMissing | MakeShard


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
    pool = ActorPool(TeacherWorker, run)
    if problems := differing_inputs(cast("list[Inputs]", pool.broadcast(ReadInputs()))):
        raise ClusterError("; ".join(problems))
    for kind in kinds:
        tasks = cast("list[MakeShard]", pool.map([FindMissing(kind)])[0])

        def on_progress(done: int, kind: Kind = kind, count: int = len(tasks)) -> None:
            print(f"{kind}: {done} of {count} shards", flush=True)
            run.report_progress(kind, done, count)

        pool.map(tasks, on_progress)
    pool.scale_to(0)


class TeacherWorker:
    """An actor's teacher."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context

    def run(self, task: Task) -> object:
        """Run one task."""
        if isinstance(task, ReadInputs):
            return socket.gethostname(), input_digests(self._context.recipe, self._pair)
        sets = self._sequences if task.kind == "sequences" else self._signals
        if isinstance(task, FindMissing):
            return [MakeShard(task.kind, name, index) for name, each in sets.items() for index in each.shards.missing()]
        shards, make = sets[task.name]
        if not shards.contains(task.index):
            shards.write(task.index, make(task.index))
        return None

    @cached_property
    def _pair(self) -> TeacherStudent:
        return load_models(self._context.recipe)

    @cached_property
    def _sequences(self) -> Mapping[str, ShardSet]:
        return sequence_shards(self._context, self._pair)

    @cached_property
    def _signals(self) -> Mapping[str, ShardSet]:
        return signal_shards(self._context, self._pair)

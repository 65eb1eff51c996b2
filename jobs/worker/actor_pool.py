"""Spreading independent units of work over Ray actors: each takes the next one as soon as it is free.

An actor that dies is started again by Ray, and its unit with it; units must therefore find out for themselves what of
them is done already, which is also what lets a stopped run go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jobs.worker.worker import Work, WorkerContext, allocate_resources
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import StoreError, TinyMusicianError

ActorFactory = Callable[[WorkerContext], Any]
"""Makes the object, once an actor, whose `do(unit)` does the work."""


class ActorPool:
    """Actors on the cluster that a job runs on."""

    def __init__(self, factory: ActorFactory, store_url: str, run_id: str, workers: int, restarts: int) -> None:
        """Each actor has a GPU if the cluster has any, and an equal share of a node's CPUs otherwise.

        Raises:
            ClusterError: there are fewer CPUs than workers, or GPUs but fewer of them.
        """
        import ray

        gpu, cpus = allocate_resources(workers)
        kind = ray.remote(num_cpus=cpus, num_gpus=int(gpu), max_restarts=restarts, max_task_retries=restarts)(
            _LazyActor
        )
        device = "cuda" if gpu else "cpu"
        self._hands = [
            kind.remote(factory, WorkerContext(store_url, run_id, rank, workers, device)) for rank in range(workers)
        ]

    def do(
        self, units: Sequence[Any], on_progress: Callable[[int], None] = lambda done: None, at_once: int = 0
    ) -> None:
        """Do all units, at most `at_once` at the same time if given; `told` hears how many are done.

        The first error ends it, as it was raised there; units that are being done go on to their end. A unit whose
        store did not answer is tried again, like one whose actor died.
        """
        import ray
        from ray.exceptions import RayTaskError

        waiting, free = deque(units), deque(self._hands[: at_once or len(self._hands)])
        busy: dict[Any, Any] = {}
        done = 0
        while waiting or busy:
            while waiting and free:
                hand = free.popleft()
                again = hand.do.options(retry_exceptions=[StoreError])
                busy[again.remote(waiting.popleft())] = hand
            (ready, *_), _ = ray.wait(list(busy), num_returns=1)
            free.append(busy.pop(ready))
            try:
                ray.get(ready)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, TinyMusicianError) else error from None
            done += 1
            on_progress(done)

    def keep(self, count: int) -> None:
        """Let all actors but so many go, and with them what of the cluster they held."""
        self._hands = self._hands[:count]


def stage_runner(pool: ActorPool, run: RunStore) -> Callable[..., None]:
    """A function that does the units of a stage, at most `at_once` at a time, and tells the run how far it is."""

    def do(stage: str, units: Sequence[Any], at_once: int = 0) -> None:
        run.tell(stage, 0, len(units))
        pool.do(units, lambda done: run.tell(stage, done, len(units)), at_once)

    return do


def run_once(work: Work, store_url: str, run_id: str, restarts: int) -> None:
    """Do what one worker does for all: on an actor of its own, which is begun anew if it dies."""
    ActorPool(partial(_SingleTask, work), store_url, run_id, 1, restarts).do([None])


class _SingleTask:
    """A bench for one piece of work."""

    def __init__(self, work: Work, context: WorkerContext) -> None:
        self._work, self._context = work, context

    def do(self, _: None) -> None:
        self._work(self._context)


class _LazyActor:
    """What an actor is: a bench that is set up at its first unit, so that a broken one is reported as that unit's."""

    def __init__(self, factory: ActorFactory, context: WorkerContext) -> None:
        self._factory, self._context = factory, context
        self._made: Any = None

    def do(self, unit: Any) -> None:
        if self._made is None:
            self._made = self._factory(self._context)
        self._made.do(unit)

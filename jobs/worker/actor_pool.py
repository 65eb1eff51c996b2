"""Runs independent tasks on a pool of Ray actors; each actor takes the next task as soon as it is free.

Ray restarts an actor that dies, and retries its task. Tasks must therefore find out which parts of them are done
already; a resumed run relies on the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from jobs.worker.context import Work, WorkerContext
from jobs.worker.resources import allocate_resources
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import StoreError, TinyMusicianError


class TaskRunner(Protocol):
    """Runs the tasks of one actor."""

    def run(self, task: Any) -> None:
        """Run a task, or what is left of it."""


ActorFactory = Callable[[WorkerContext], TaskRunner]
"""Creates an actor's task runner; called once per actor."""


class ActorPool:
    """Actors on the cluster that runs this job."""

    def __init__(self, factory: ActorFactory, store_url: str, run_id: str, workers: int, restarts: int) -> None:
        """Each actor has a GPU if the cluster has any, otherwise an equal share of a node's CPUs.

        Raises:
            ClusterError: there are fewer CPUs than workers, or GPUs but fewer of them.
        """
        import ray

        gpu, cpus = allocate_resources(workers)
        kind = ray.remote(num_cpus=cpus, num_gpus=int(gpu), max_restarts=restarts, max_task_retries=restarts)(
            _LazyActor
        )
        device = "cuda" if gpu else "cpu"
        self._actors = [
            kind.remote(factory, WorkerContext(store_url, run_id, rank, workers, device)) for rank in range(workers)
        ]

    def map(
        self,
        tasks: Sequence[object],
        on_progress: Callable[[int], None] = lambda done: None,
        max_concurrency: int = 0,
    ) -> None:
        """Run all tasks; `on_progress` receives the number that are done. 0 as `max_concurrency` is no limit.

        The first error is raised here as it was raised on the actor; tasks that run are completed. A task whose store
        did not respond is retried, like one whose actor died.
        """
        import ray
        from ray.exceptions import RayTaskError

        waiting, free = deque(tasks), deque(self._actors[: max_concurrency or len(self._actors)])
        running: dict[Any, Any] = {}
        done = 0
        while waiting or running:
            while waiting and free:
                actor = free.popleft()
                method = actor.run.options(retry_exceptions=[StoreError])
                running[method.remote(waiting.popleft())] = actor
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            free.append(running.pop(ready))
            try:
                ray.get(ready)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, TinyMusicianError) else error from None
            done += 1
            on_progress(done)

    def scale_to(self, count: int) -> None:
        """Release all actors but `count`, with their resources."""
        self._actors = self._actors[:count]


def stage_runner(pool: ActorPool, run: RunStore) -> Callable[..., None]:
    """A function that runs the tasks of a named stage on the pool and reports the progress to the run."""

    def run_stage(stage: str, tasks: Sequence[object], max_concurrency: int = 0) -> None:
        run.report_progress(stage, 0, len(tasks))
        pool.map(tasks, lambda done: run.report_progress(stage, done, len(tasks)), max_concurrency)

    return run_stage


def run_once(work: Work, store_url: str, run_id: str, restarts: int) -> None:
    """Run `work` on one actor, which is restarted if it dies."""
    ActorPool(partial(_SingleTask, work), store_url, run_id, 1, restarts).map([None])


class _SingleTask:
    """The task runner of `run_once`."""

    def __init__(self, work: Work, context: WorkerContext) -> None:
        self._work, self._context = work, context

    def run(self, _: None) -> None:
        self._work(self._context)


class _LazyActor:
    """An actor whose task runner is created with its first task, so that an error in it is that task's error."""

    def __init__(self, factory: ActorFactory, context: WorkerContext) -> None:
        self._factory, self._context = factory, context
        self._runner: TaskRunner | None = None

    def run(self, task: Any) -> None:
        if self._runner is None:
            self._runner = self._factory(self._context)
        self._runner.run(task)

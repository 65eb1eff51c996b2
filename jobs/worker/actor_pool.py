"""Runs independent tasks on a pool of Ray actors; each actor takes the next task as soon as it is free.

Ray restarts an actor that dies, and retries its task. Tasks must therefore find out which parts of them are done
already; a resumed run relies on the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from jobs.worker.context import Work, WorkerContext
from jobs.worker.resources import allocate_resources
from tinymusician.artifacts.run_state import RunRecord
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import StoreError, TinyMusicianError
from tinymusician.recipe import parse_recipe


class TaskRunner(Protocol):
    """Runs the tasks of one actor."""

    def run(self, task: Any) -> None:
        """Run a task, or what is left of it."""


ActorFactory = Callable[[WorkerContext], TaskRunner]
"""Creates an actor's task runner; called once per actor."""


class ActorPool:
    """Actors on the cluster that runs this job."""

    def __init__(
        self,
        factory: ActorFactory,
        run: RunStore,
        workers: int | None = None,
        device: Literal["gpu", "cpu"] | None = None,
    ) -> None:
        """`workers` actors, as many as the run has by default, on `device`, by default the recipe's.

        Raises:
            ClusterError: they do not fit on the cluster.
        """
        import ray

        record = run.record()
        training, count = parse_recipe(record.recipe, run.id).training, workers or record.workers
        if device is not None:
            training = training.model_copy(update={"device": device})
        resources = allocate_resources(training, count, spare_cpus=spare_cpus(record))
        self.device, restarts = resources.device, training.max_restarts
        kind = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=restarts, max_task_retries=restarts
        )(_LazyActor)
        self._actors = [
            kind.remote(factory, WorkerContext(run.store.url, run.id, rank, count, resources.device))
            for rank in range(count)
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


def spare_cpus(record: RunRecord) -> int:
    """The CPUs that a run leaves to others: none on the Ray that was started on this machine for one user."""
    return 0 if record.local_ray else 1


def run_once(work: Work, run: RunStore) -> None:
    """Run `work` on one actor, which is restarted if it dies."""
    ActorPool(partial(_SingleTask, work), run, workers=1).map([None])


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

"""Runs independent tasks on a pool of Ray actors; each actor takes the next task as soon as it is free.

Ray restarts an actor that dies. Its task goes to the next free actor, so a lost node costs the tasks that ran on it,
and the others do not wait for its return. Tasks must find out which parts of them are done already; a resumed run
relies on the same.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from jobs.worker.context import WorkerContext
from jobs.worker.node_errors import errors_name_the_node
from jobs.worker.resources import allocate_resources
from tinymusician.artifacts.run_state import Allocation, RunRecord
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import ClusterError, StoreError, TinyMusicianError, first_line
from tinymusician.recipe import parse_recipe

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

Result = TypeVar("Result")
_AWAY_SECONDS = 0.5
"""Between two questions to an actor that Ray cannot reach; results of others wait no longer."""


class TaskRunner(Protocol):
    """Runs the tasks of one actor."""

    def run(self, task: Any) -> object:
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
        min_count = min(training.min_workers or count, count)
        resources = allocate_resources(training, count, min_count, spare_cpus(record))
        run.write_allocation(Allocation(workers=count, cpus=resources.cpus, gpus=resources.gpus))
        self.device, self._max_losses = resources.device, training.max_restarts
        kind = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=-1)(PoolActor)
        self._actors = [
            kind.remote(factory, WorkerContext.of_run(run, rank, count, resources.device)) for rank in range(count)
        ]
        self._idle: deque[ActorHandle] = deque()
        self._start_failures = 0
        self._starting = {actor.ping.remote(): actor for actor in self._actors}

    def map(
        self,
        tasks: Sequence[object],
        on_result: Callable[[int, object], None] = lambda done, result: None,
        max_concurrency: int = 0,
    ) -> None:
        """Run all tasks. `on_result` receives the number that are done, and a task's result. 0 concurrency is no limit.

        A task whose actor died, or whose store did not respond, is run again, `training.max_restarts` times at most;
        preempted machines do not count.

        Raises:
            ClusterError: a task lost its actor too often.
            TinyMusicianError: the first error of a task, as it was raised on the actor.
        """
        import ray

        queue = _TaskQueue(len(tasks), self._max_losses)
        running: dict[ObjectRef, tuple[ActorHandle, int]] = {}
        while queue.waiting or running:
            while queue.waiting and self._idle and len(running) < (max_concurrency or len(tasks)):
                actor, index = self._idle.popleft(), queue.waiting.popleft()
                running[actor.run.remote(tasks[index])] = actor, index
            (ready, *_), _ = ray.wait([*running, *self._starting])
            if ready in self._starting:
                self._on_started(ready)
            elif self._is_done(ready, *running.pop(ready), queue):
                on_result(queue.done, queue.result)

    def _is_done(self, ready: ObjectRef, actor: ActorHandle, index: int, queue: _TaskQueue) -> bool:
        """Take a task's result, or queue it again."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            queue.result = ray.get(ready)
        except RayActorError as error:
            if not error.preempted and not queue.may_fail(index):
                raise _lost(self._max_losses + 1) from error
            print(f"a worker was lost: {first_line(error)}; its task is run again", flush=True)
            queue.waiting.appendleft(index)
            self._starting[actor.ping.remote()] = actor
            return False
        except RayTaskError as error:
            self._idle.append(actor)
            if isinstance(error.cause, StoreError) and queue.may_fail(index):
                queue.waiting.append(index)
                return False
            raise error.cause if isinstance(error.cause, TinyMusicianError) else error from None
        self._idle.append(actor)
        queue.done += 1
        return True

    def _on_started(self, ready: ObjectRef) -> None:
        """An actor answers for the first time, or again; one that dies before it answers is asked again."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError

        actor = self._starting.pop(ready)
        try:
            ray.get(ready)
        except ActorUnavailableError:  # its node is gone, and Ray waits for another: no failure
            time.sleep(_AWAY_SECONDS)
            self._starting[actor.ping.remote()] = actor
        except RayActorError as error:
            self._start_failures += not error.preempted
            if self._start_failures > self._max_losses * len(self._actors):
                raise _lost(self._start_failures) from error
            self._starting[actor.ping.remote()] = actor
        else:
            self._idle.append(actor)

    def scale_to(self, count: int) -> None:
        """Release all actors but `count`, with their resources."""
        self._actors = self._actors[:count]
        self._idle = deque(actor for actor in self._idle if actor in self._actors)
        self._starting = {ping: actor for ping, actor in self._starting.items() if actor in self._actors}


def stage_runner(pool: ActorPool, run: RunStore) -> Callable[..., object]:
    """A function that runs the tasks of a named stage on the pool and reports the progress to the run.

    It returns what the task that ended last returned.
    """

    def run_stage(stage: str, tasks: Sequence[object], max_concurrency: int = 0) -> object:
        last: list[object] = [None]

        def on_result(done: int, result: object) -> None:
            run.report_progress(stage, done, len(tasks))
            last[0] = result

        run.report_progress(stage, 0, len(tasks))
        pool.map(tasks, on_result, max_concurrency)
        return last[0]

    return run_stage


def spare_cpus(record: RunRecord) -> int:
    """The CPUs that a run leaves to others: none on the Ray that was started on this machine for one user."""
    return 0 if record.local_ray else 1


def run_once(work: Callable[[WorkerContext], Result], run: RunStore) -> Result:
    """Run `work` on one actor, which is restarted if it dies; returns what it returns."""
    results: list[Any] = []
    pool = ActorPool(partial(_SingleTask, work), run, workers=1)
    pool.map([None], lambda _, result: results.append(result))
    result: Result = results[0]
    return result


class _SingleTask:
    """The task runner of `run_once`."""

    def __init__(self, work: Callable[[WorkerContext], object], context: WorkerContext) -> None:
        self._work, self._context = work, context

    def run(self, _: None) -> object:
        return self._work(self._context)


class _TaskQueue:
    """The tasks of one `map`, by index: which wait, how many are done, the last result, how often each failed."""

    def __init__(self, count: int, max_failures: int) -> None:
        self.waiting, self.done = deque(range(count)), 0
        self.result: object = None
        self._failures, self._max_failures = Counter[int](), max_failures

    def may_fail(self, index: int) -> bool:
        """Count a failure of a task; whether it may be run again."""
        self._failures[index] += 1
        return self._failures[index] <= self._max_failures


class PoolActor:
    """An actor whose task runner is created with its first task, so that an error in it is that task's error."""

    def __init__(self, factory: ActorFactory, context: WorkerContext) -> None:
        self._factory, self._context = factory, context
        self._runner: TaskRunner | None = None

    def ping(self) -> None:
        """Answers once the actor runs."""

    def run(self, task: Any) -> object:
        with errors_name_the_node():
            if self._runner is None:
                self._runner = self._factory(self._context)
            return self._runner.run(task)


def _lost(times: int) -> ClusterError:
    return ClusterError(f"a task lost its worker {times} times (training.max_restarts allows fewer); the log says how")

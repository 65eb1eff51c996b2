"""Teachers on Ray actors: they sample the sequences, then compute logits ahead of the training workers.

Ray restarts an actor that dies, and repeats its unfinished calls. A worker prefetches at most `signals.prefetch`
batches, which bounds its objects in Ray's object store.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import cycle
from typing import TYPE_CHECKING, Any

from jobs.distill.models import TeacherStudent, load_models
from jobs.distill.teacher import make_sequences, online_signals
from jobs.worker.context import WorkerContext
from jobs.worker.resources import WorkerResources
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.tokens import TokenDataset
from tinymusician.errors import ClusterError
from tinymusician.recipe import ActorSignalsConfig, parse_recipe

if TYPE_CHECKING:
    from tinymusician.distill.signals import Rows, Target, TeacherSignals


class TeacherPool:
    """The teacher actors of a run; they end with this context."""

    def __init__(self, run: RunStore, resources: WorkerResources) -> None:
        """Create the actors."""
        import ray

        recipe = parse_recipe(run.record().recipe, run.id)
        assert isinstance(recipe.signals, ActorSignalsConfig)
        count, restarts = recipe.signals.actors, recipe.training.max_restarts
        kind = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=restarts, max_task_retries=restarts
        )(TeacherActor)
        self._actors = [
            kind.options(name=_actor_name(run.id, rank)).remote(
                WorkerContext.of_run(run, rank, count, resources.device)
            )
            for rank in range(count)
        ]

    def __enter__(self) -> TeacherPool:
        """Sample the sequences that the store lacks."""
        import ray

        _with_user_error(lambda: ray.get([actor.sample.remote() for actor in self._actors]))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self._actors:
            ray.kill(actor)


class TeacherClient:
    """A worker's connection to the teacher actors, which it uses in turn."""

    def __init__(self, context: WorkerContext, tokens: TokenDataset, target: Target, pad: int, actors: int) -> None:
        import ray

        local_actors = range(context.rank, context.rank + actors)
        self._next = cycle([ray.get_actor(_actor_name(context.run_id, number % actors)) for number in local_actors])
        self._tokens, self._target, self._pad, self._device = tokens, target, pad, context.device

    def request(self, rows: Rows) -> Callable[[], TeacherSignals]:
        """Start computing the logits of these rows on the next actor; the result waits for them."""
        import ray

        from tinymusician.distill.signals import TeacherSignals, sequences_of

        logits = next(self._next).logits.remote(self._tokens.select(rows))
        sequences = sequences_of(self._tokens, rows, self._target, self._pad)

        def wait() -> TeacherSignals:
            import torch

            values = torch.from_numpy(_with_user_error(lambda: ray.get(logits)).copy())  # Ray's memory is read-only
            return TeacherSignals(
                type(sequences)(*(part.to(self._device) for part in sequences)), values.to(self._device)
            )

        return wait


class TeacherActor:
    """The recipe's teacher on a Ray actor."""

    def __init__(self, context: WorkerContext) -> None:
        import torch

        torch.set_num_threads(max(1, context.threads))
        self._context = context

    @cached_property
    def _pair(self) -> TeacherStudent:
        """The models, loaded at the first call, so that an error in loading is that call's error."""
        return load_models(self._context.recipe)

    def sample(self) -> None:
        """Sample this actor's share of the missing sequences."""
        make_sequences(self._context, self._pair)

    def logits(self, tokens: TokenDataset) -> Any:
        """The logits on these sequences, [R, K, S, V], in float32."""
        import numpy as np

        return online_signals(self._context, self._pair, tokens)(np.arange(len(tokens.codes))).logits.cpu().numpy()


def _with_user_error(get: Callable[[], Any]) -> Any:
    """The result of `get`, with Ray's errors as errors for users.

    Raises:
        ClusterError: an actor died more often than it is restarted.
        TinyMusicianError: an actor raised it.
    """
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return get()
    except RayActorError as error:
        raise ClusterError(
            "a teacher actor died more often than training.max_restarts; the run's log says why"
        ) from error
    except RayTaskError as error:
        raise error.cause from error


def _actor_name(run: str, rank: int) -> str:
    return f"{run}-teacher-{rank}"

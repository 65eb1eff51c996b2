"""Teachers on Ray actors of their own: they sample the sequences, then answer ahead of the workers that train.

Ray starts an actor again that dies, and asks it again what it had not answered. A worker asks for no more than its
recipe's `ahead` batches, so what is kept for it in Ray's object store is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import cycle
from typing import TYPE_CHECKING, Any

from jobs.distill.models import TeacherStudent, load_models
from jobs.distill.teacher import make_sequences, online_signals
from jobs.worker.context import WorkerContext
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.tokens import TokenDataset
from tinymusician.errors import ClusterError
from tinymusician.recipe import ActorSignalsConfig, parse_recipe

if TYPE_CHECKING:
    from tinymusician.distill.signals import Rows, Target, TeacherSignals


class TeacherPool:
    """The actors of a run, which end with this context."""

    def __init__(self, run: RunStore, gpu: bool, cpus: int) -> None:
        """Each has a GPU, or so many CPUs."""
        import ray

        recipe = parse_recipe(run.record().recipe, run.id)
        assert isinstance(recipe.signals, ActorSignalsConfig)
        count, restarts = recipe.signals.actors, recipe.training.max_restarts
        kind = ray.remote(num_cpus=cpus, num_gpus=int(gpu), max_restarts=restarts, max_task_retries=restarts)(
            TeacherActor
        )
        self._actors = [
            kind.options(name=_actor_name(run.id, rank)).remote(
                WorkerContext(run.store.url, run.id, rank, count, "cuda" if gpu else "cpu")
            )
            for rank in range(count)
        ]

    def __enter__(self) -> TeacherPool:
        """Have the sequences sampled that the store does not have."""
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
    """What a worker knows of the actors: their names, and the sequences it asks about."""

    def __init__(self, context: WorkerContext, tokens: TokenDataset, target: Target, pad: int, actors: int) -> None:
        import ray

        local_actors = range(context.rank, context.rank + actors)
        self._next = cycle([ray.get_actor(_actor_name(context.run_id, number % actors)) for number in local_actors])
        self._tokens, self._target, self._pad, self._device = tokens, target, pad, context.device

    def ask(self, rows: Rows) -> Callable[[], TeacherSignals]:
        """Have the next actor begin with these rows."""
        import ray

        from tinymusician.distill.signals import TeacherSignals, sequences_of

        logits = next(self._next).logits.remote(self._tokens.taken(rows))
        sequences = sequences_of(self._tokens, rows, self._target, self._pad)

        def wait() -> TeacherSignals:
            import torch

            values = torch.from_numpy(_with_user_error(lambda: ray.get(logits)).copy())  # Ray's own memory is read-only
            values = values.view(torch.bfloat16) if values.dtype == torch.int16 else values
            return TeacherSignals(
                type(sequences)(*(part.to(self._device) for part in sequences)), values.to(self._device)
            )

        return wait


class TeacherActor:
    """What an actor is: the recipe's teacher, frozen."""

    def __init__(self, context: WorkerContext) -> None:
        import torch

        torch.set_num_threads(max(1, context.threads))
        self._context = context

    @cached_property
    def _pair(self) -> TeacherStudent:
        """Loaded when it is first needed, so that a model that cannot be had is an answer and no death."""
        return load_models(self._context.recipe)

    def sample(self) -> None:
        """This actor's share of the sequences that are missing."""
        make_sequences(self._context, self._pair)

    def logits(self, tokens: TokenDataset) -> Any:
        """The logits on these sequences, [R, K, S, V]; bfloat16 as the 16-bit numbers that NumPy knows."""
        import numpy as np
        import torch

        logits = online_signals(self._context, self._pair, tokens)(np.arange(len(tokens.codes))).logits.cpu()
        return (logits.view(torch.int16) if logits.dtype == torch.bfloat16 else logits).numpy()


def _with_user_error(get: Callable[[], Any]) -> Any:
    """What actors answered.

    Raises:
        ClusterError: one died more often than it is restarted.
        TinyMusicianError: what one of them raised.
    """
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return get()
    except RayActorError as error:
        raise ClusterError(
            "a teacher's actor died more often than training.max_restarts; the log tells of what"
        ) from error
    except RayTaskError as error:
        raise error.cause from error


def _actor_name(run: str, rank: int) -> str:
    return f"{run}-teacher-{rank}"

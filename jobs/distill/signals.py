"""The source of the teacher's logits during training: online, cached or actors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.distill.models import TeacherStudent
from jobs.distill.teacher import cached_signals, online_signals
from jobs.distill.teacher_actors import TeacherClient
from jobs.worker.context import WorkerContext
from tinymusician.data.tokens import TokenDataset
from tinymusician.recipe import ActorSignalsConfig, CachedSignalsConfig, LayerSubset, Recipe

if TYPE_CHECKING:
    from tinymusician.distill.signals import SignalSource


def open_signals(
    context: WorkerContext, pair: TeacherStudent, tokens: TokenDataset, states: bool = True
) -> SignalSource:
    """The recipe's source of signals on these sequences, with the teacher's hidden `states` if a loss needs them.

    Raises:
        RunError: the source is `cached`, and shards are missing.
    """
    config = context.recipe.signals
    if isinstance(config, CachedSignalsConfig):
        return cached_signals(context, pair, tokens)
    if isinstance(config, ActorSignalsConfig):
        from tinymusician.distill.signals import PrefetchingSource

        pad = pair.teacher.config.decoder.vocab_size
        actors = TeacherClient(context, tokens, context.recipe.teacher.passes, pad, config.actors)
        return PrefetchingSource(actors.request, config.prefetch)
    return online_signals(context, pair, tokens, layers=matched_teacher_layers(context.recipe, pair) if states else ())


def matched_teacher_layers(recipe: Recipe, pair: TeacherStudent) -> tuple[int, ...]:
    """The teacher layers whose hidden states the student's layers match, if the recipe has such a loss."""
    if not recipe.hidden.weight:
        return ()
    if isinstance(recipe.student, LayerSubset):
        return recipe.student.layers
    from tinymusician.distill.hidden_states import followed_layers

    depths = (model.config.decoder.num_hidden_layers for model in (pair.student, pair.teacher))
    return tuple(followed_layers(*depths))

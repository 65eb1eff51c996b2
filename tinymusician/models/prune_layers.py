"""Prunes decoder layers: a student is initialized with chosen layers of its teacher.

Codec, text encoder, embeddings and heads are the teacher's. Source: weight transfer from teacher layers as in
DistilBERT (arXiv 1910.01108, section 2) and TinyTTM (arXiv 2406.17159).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from transformers import MusicgenForConditionalGeneration

from tinymusician.errors import ModelError, RecipeError
from tinymusician.models.protocols import HasWeights, Musicgen, MusicgenConfig


def prune_layers(teacher: Musicgen, layers: Sequence[int]) -> Musicgen:
    """A MusicGen whose decoder has the teacher's `layers`, in this order, with its own copy of all weights.

    Raises:
        RecipeError: a layer does not exist, or there are more layers than the teacher has.
    """
    check_layers(layers, teacher.config.decoder.num_hidden_layers)
    config = copy.deepcopy(teacher.config)
    config.decoder.num_hidden_layers = len(layers)
    return build_musicgen(config, _renumbered(teacher.state_dict(), layers), teacher)


def build_musicgen(config: MusicgenConfig, weights: Mapping[str, Tensor], like: Musicgen) -> Musicgen:
    """A MusicGen of a configuration with a copy of these weights and the generation defaults of another one."""
    model: Musicgen = MusicgenForConditionalGeneration(config)
    model.load_state_dict(weights)
    model.generation_config = copy.deepcopy(like.generation_config)
    return model.eval()


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Check that a student's layers exist in a teacher with `depth` layers.

    Raises:
        RecipeError: a layer does not exist, or there are more than `depth`.
    """
    if len(layers) > depth:
        raise RecipeError(
            f"student.layers: {len(layers)} layers; the teacher has {depth}, so at most {depth} are allowed"
        )
    for layer in layers:
        if not 0 <= layer < depth:
            raise RecipeError(f"student.layers: layer {layer}; the teacher's are 0 to {depth - 1}")


def check_pair(teacher: Musicgen, student: Musicgen) -> None:
    """Check that a student has its teacher's codes.

    Raises:
        ModelError: codebooks, vocabulary, frame rate or text vocabulary differ.
    """
    pairs: dict[str, Callable[[Musicgen], int]] = {
        "codebooks": lambda model: model.config.decoder.num_codebooks,
        "codes a codebook": lambda model: model.config.decoder.vocab_size,
        "codec codes a codebook": lambda model: model.config.audio_encoder.codebook_size,
        "frames a second": lambda model: model.config.audio_encoder.frame_rate,
        "text vocabulary": lambda model: model.config.text_encoder.vocab_size,
    }
    for name, read in pairs.items():
        if read(teacher) != read(student):
            raise ModelError(f"student: {name} {read(student)}; the teacher's are {read(teacher)}, and must be equal")
    check_codec(teacher, "teacher")


def check_codec(model: Musicgen, name: str) -> None:
    """Check that a model's decoder and codec have the same codebooks.

    Raises:
        ModelError: they differ.
    """
    decoder, codec = model.config.decoder, model.config.audio_encoder
    emitted, decoded = (decoder.num_codebooks, decoder.vocab_size), (codec.num_quantizers, codec.codebook_size)
    if emitted != decoded:
        raise ModelError(
            f"{name}: the decoder has {emitted[0]} codebooks of {emitted[1]} codes, "
            f"its codec {decoded[0]} of {decoded[1]}; they must be equal"
        )


def weights_digest(model: HasWeights) -> str:
    """A SHA-256 over all weights of a model by name, independent of where they were loaded from."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()


def _renumbered(weights: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The teacher's weights, with the chosen layers renumbered."""
    prefix = "decoder.model.decoder.layers."
    renumbered = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    for new, old in enumerate(layers):
        old_prefix = f"{prefix}{old}."
        moved = {name.removeprefix(old_prefix): value for name, value in weights.items() if name.startswith(old_prefix)}
        renumbered |= {f"{prefix}{new}.{rest}": value for rest, value in moved.items()}
    return renumbered

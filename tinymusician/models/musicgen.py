"""Loads MusicGen in PyTorch: any model in transformers' MusicGen layout, from the hub or a local folder."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, MusicgenForConditionalGeneration

from tinymusician.errors import ModelError, first_line
from tinymusician.inputs import scheme_of
from tinymusician.models.audiocraft import convert_cached
from tinymusician.models.checkpoint_files import check_layout, check_tensors
from tinymusician.models.guidance import GuidanceConditionedMusicgen
from tinymusician.models.hub import cached_commit, download
from tinymusician.models.pretrained import load_pretrained
from tinymusician.models.protocols import Musicgen, Tokenizer
from tinymusician.models.shape import is_release, local_model_folder
from tinymusician.models.tokenizer import read_tokenizer


def load_musicgen(name: str) -> Musicgen:
    """Load a MusicGen by hub id or from a local folder, in float32 and evaluation mode, from safetensors only.

    Raises:
        ModelError: the weights are missing, damaged, or belong to another kind of model; a tensor would be left at
            random values, or is not finite.
    """
    folder = model_location(name)
    check_layout(folder, name)
    check_tensors(folder, name)
    try:
        ranged = getattr(AutoConfig.from_pretrained(folder), "guidance_range", None)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: config.json cannot be read ({first_line(error)})") from error
    model: Musicgen = load_pretrained(
        GuidanceConditionedMusicgen if ranged else MusicgenForConditionalGeneration, name, folder
    )
    return model


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer beside a MusicGen's weights.

    Raises:
        ModelError: there is none.
    """
    return read_tokenizer(name, model_location(name))


def model_location(name: str) -> Path:
    """The folder of a packaged model (`band-large`), a local folder as it is, or that of an artifact or hub model.

    Artifacts and hub models are downloaded, and audiocraft releases converted to transformers' layout, once.

    Raises:
        ModelError: a local folder does not exist, the weights of a packaged model are not here, or those of a hub model
            cannot be had.
    """
    return local_folder(name) or download(name)


def model_commit(name: str) -> str | None:
    """The commit hash of a downloaded hub model; None for every other model."""
    return None if scheme_of(name) or local_folder(name) else cached_commit(name)


def local_folder(name: str) -> Path | None:
    """The same, but None for a hub id, which is not downloaded."""
    folder = local_model_folder(name)
    return convert_cached(folder) if folder is not None and is_release(folder) else folder

"""The shape of a MusicGen decoder by the model's name, found without loading anything.

The shapes of the released models are listed here; those of other models are read from their config.json.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from tinymusician.errors import ModelError, RecipeError
from tinymusician.inputs import input_path, read_json_file, scheme_of
from tinymusician.json_types import JsonObject
from tinymusician.models.config_defaults import DECODER, ENCODEC, T5
from tinymusician.models.hub import split_revision
from tinymusician.models.tensor_shapes import DecoderShape

WEIGHTS_VARIABLE = "TINYMUSICIAN_WEIGHTS"
"""The environment variable with a folder of the house band's weights; the wheel has only their configurations."""
WEIGHTS = Path(os.environ.get(WEIGHTS_VARIABLE) or Path(__file__).parent / "weights")


RELEASE = ("state_dict.bin", "compression_state_dict.bin")
"""The files of an audiocraft release: language model and codec."""
RELEASED = {
    "facebook/musicgen-small": DecoderShape(24, 1024, 4096, heads=16),
    "facebook/musicgen-medium": DecoderShape(48, 1536, 6144, heads=24),
    "facebook/musicgen-large": DecoderShape(48, 2048, 8192, heads=32),
}
RELEASED_SECONDS = 30
"""The length of the clips that the released models were trained on."""


def is_release(folder: Path) -> bool:
    """Whether a folder is an audiocraft release only; the hub's folders contain both layouts."""
    both = (folder / RELEASE[0]).is_file() and (folder / RELEASE[1]).is_file()
    return both and not (folder / "config.json").is_file()


def is_packaged(name: str) -> bool:
    """Whether a model of this name is in the package."""
    return "/" not in name and (WEIGHTS / name / "config.json").is_file()


def read_model_json(name: str, file: str) -> JsonObject | None:
    """A JSON file of a model; None if it has none, or is not on this machine nor in a store.

    Raises:
        ValueError: it is not a JSON object.
        OSError, StoreError: it cannot be read.
    """
    content = read_json_file(str(_folder(name)) if not scheme_of(name) else name, file)
    if content is not None and not isinstance(content, dict):
        raise ValueError("is no JSON object")
    return content


def _folder(name: str) -> Path:
    return WEIGHTS / name if (WEIGHTS / name).is_dir() else Path(name).expanduser()


def check_weights(name: str) -> None:
    """Check that the weights of a packaged model are here; other names pass.

    Raises:
        ModelError: they are not: this is an installed wheel.
    """
    if is_packaged(name) and not (WEIGHTS / name / "model.safetensors").is_file():
        raise ModelError(
            f"model {name!r}: its weights are not in the wheel; set {WEIGHTS_VARIABLE} to the folder "
            "tinymusician/models/weights of a checkout, or install the checkout with `pip install -e`"
        )


def local_model_folder(name: str) -> Path | None:
    """The folder of a packaged model, an artifact or a local folder; None for the id of a hub model.

    An artifact is downloaded to this machine first.

    Raises:
        ModelError: a path has no folder, or a packaged model no weights.
    """
    check_weights(name)
    if is_packaged(name):
        return WEIGHTS / name
    folder = input_path(name)
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r}: no such folder")
    return None


def shape_of(name: str) -> DecoderShape | None:
    """The decoder's shape of a packaged, local or released model.

    None for an unknown hub id, and for an audiocraft release, whose shape is among its weights.

    Raises:
        ModelError: a local folder has no readable MusicGen configuration, or the name is not valid.
    """
    repository, _ = split_revision(name)
    if repository in RELEASED:
        return RELEASED[repository]
    if not scheme_of(name) and not (folder := _folder(name)).is_dir():
        if "/" not in name:
            packaged = ", ".join(sorted(path.name for path in WEIGHTS.iterdir() if path.name.startswith("band-")))
            raise ModelError(
                f"model {name!r}: allowed are a folder, a hub id OWNER/NAME or OWNER/NAME@REVISION, an artifact of the "
                f"store, s3://BUCKET/PREFIX, and {packaged}"
            )
        return None
    if not scheme_of(name) and (folder / "state_dict.bin").is_file():
        return None
    try:
        config = read_model_json(name, "config.json")
        return decoder_shape(config) if config is not None else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model {name!r}: config.json is missing or not a MusicGen's ({error!r})") from error


def decoder_shape(config: JsonObject) -> DecoderShape:
    """The shape of a MusicGen's decoder by its configuration; where that is silent, transformers' default.

    Raises:
        KeyError: a section is missing.
    """
    decoder = DECODER | config["decoder"]
    text, codec = T5 | config["text_encoder"], ENCODEC | config["audio_encoder"]
    return DecoderShape(
        layers=decoder["num_hidden_layers"],
        width=decoder["hidden_size"],
        feed_forward=decoder["ffn_dim"],
        codebooks=decoder["num_codebooks"],
        vocabulary=decoder["vocab_size"],
        text=text["d_model"],
        positions=decoder["max_position_embeddings"],
        heads=decoder["num_attention_heads"],
        frame_rate=codec["sampling_rate"] / math.prod(codec["upsampling_ratios"]),
    )


def sampling_defaults(name: str) -> dict[str, float]:
    """The `guidance_scale`, `top_k` and `temperature` that a model brings, as far as it is here or in a store.

    Raises:
        ModelError: its generation_config.json is not JSON, or a value is not a positive number.
    """
    try:
        content = read_model_json(name, "generation_config.json") or {}
        values = {key: content[key] for key in ("guidance_scale", "top_k", "temperature") if content.get(key)}
        if any(isinstance(value, bool) or not value > 0 for value in values.values()):
            raise ValueError(f"{values}: positive numbers are needed")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"model {name!r}: generation_config.json: {error}") from error
    return values


def check_tensor_parallel(heads: int, feed_forward: int, pieces: int) -> None:
    """Check that a decoder with so many attention heads and this feed-forward width splits into `pieces` equal pieces.

    Raises:
        ModelError: it does not.
    """
    if heads % pieces or feed_forward % pieces:
        raise ModelError(
            f"teacher.tensor_parallel_size = {pieces}: must divide the teacher's {heads} attention heads and its "
            f"feed-forward width {feed_forward}"
        )


def check_pruned_width(
    width: int,
    heads: int,
    feed_forward: int,
    teacher_width: int,
    teacher_heads: int,
    teacher_feed_forward: int,
    text: int,
) -> None:
    """Check that a student can be pruned from a teacher.

    Raises:
        RecipeError: a size exceeds the teacher's, its heads have another width, or it is as wide as the `text` states,
            which its teacher projects and it could not.
    """
    head_width = teacher_width // teacher_heads
    if width != heads * head_width:
        raise RecipeError(
            f"student.width = {width}: must be student.heads times the width of the teacher's heads, "
            f"{heads} x {head_width}"
        )
    if width > teacher_width or width % 2:
        raise RecipeError(f"student.width = {width}: even numbers up to the teacher's {teacher_width} are allowed")
    if width == text != teacher_width:
        raise RecipeError(
            f"student.width = {width}: is that of the text states, which this teacher projects and such a student "
            "could not; any other is allowed"
        )
    if feed_forward > teacher_feed_forward:
        raise RecipeError(f"student.feed_forward = {feed_forward}: at most the teacher's {teacher_feed_forward}")

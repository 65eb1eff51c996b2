"""A recipe's shapes of a model that answers questions, for training and for cost estimates."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tinymusician.errors import ModelError, first_line
from tinymusician.inputs import scheme_of
from tinymusician.models.audio_encoder import AudioEncoderShape
from tinymusician.models.audio_lm import AudioLMShape, LanguageModelShape
from tinymusician.models.pretrained_lm import llama_shape
from tinymusician.models.shape import read_model_json
from tinymusician.models.spectral_front_end import MATPAC_SCALE, FrontEndConfig
from tinymusician.recipe import LanguageModelConfig, UnderstandConfig

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def front_end_of(config: UnderstandConfig) -> FrontEndConfig:
    """The front end without the scales of a corpus, for counting parameters."""
    return FrontEndConfig(pitch=MATPAC_SCALE) if config.encoder.pitch_channel else FrontEndConfig()


def audio_lm_shape(config: UnderstandConfig, front_end: FrontEndConfig) -> AudioLMShape:
    """The shapes that a recipe states."""
    encoder = config.encoder
    return AudioLMShape(
        AudioEncoderShape(encoder.width, encoder.layers, encoder.heads, encoder.feed_forward, front_end=front_end),
        config.train.projector_width,
        _language_model_shape(config.language_model),
    )


def _shape_of(model: str) -> LanguageModelShape | None:
    """The shape of a language model; None for one of the hub or of other machines, whose files are not here.

    Raises:
        ModelError: the name is no model's, or its config.json is not a Llama's.
    """
    try:
        content = read_model_json(model, "config.json")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"language model {model!r}: config.json cannot be read ({first_line(error)})") from error
    if content is not None:
        return llama_shape(content, model)
    if scheme_of(model) == "file" or (not Path(model).exists() and _HUB_ID.fullmatch(model)):
        return None
    raise ModelError(
        f"language model {model!r}: has no config.json; a folder in transformers' layout, an artifact or a hub id is "
        "needed (`tmctl models convert FILE.gguf NEW` makes a folder of a GGUF file)"
    )


def student_shape(teacher: LanguageModelShape, stated: LanguageModelShape) -> LanguageModelShape:
    """The stated sizes, with the teacher's tokens and constants."""
    return replace(
        teacher,
        width=stated.width,
        layers=stated.layers,
        heads=stated.heads,
        key_value_heads=stated.key_value_heads,
        feed_forward=stated.feed_forward,
    )


def _language_model_shape(config: LanguageModelConfig) -> LanguageModelShape:
    """That of the model that the recipe names, if its files are on this machine or in a store; else what it states."""
    if config.model is not None and (shape := _shape_of(config.model)) is not None:
        return shape
    return LanguageModelShape(
        vocabulary=config.vocabulary,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        key_value_heads=config.key_value_heads,
        feed_forward=config.feed_forward,
    )

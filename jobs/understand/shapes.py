"""A recipe's shapes of a model that answers questions, for training and for cost estimates."""

from __future__ import annotations

from dataclasses import replace

from tinymusician.models.audio_encoder import AudioEncoderShape
from tinymusician.models.audio_lm import AudioLMShape, LanguageModelShape
from tinymusician.models.pretrained_lm import llama_shape
from tinymusician.models.shape import read_model_json
from tinymusician.models.spectral_front_end import MATPAC_SCALE, FrontEndConfig
from tinymusician.recipe import LanguageModelConfig, UnderstandConfig


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
    if config.model is not None and (content := read_model_json(config.model, "config.json")) is not None:
        return llama_shape(content, config.model)
    return LanguageModelShape(
        vocabulary=config.vocabulary,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        key_value_heads=config.key_value_heads,
        feed_forward=config.feed_forward,
    )

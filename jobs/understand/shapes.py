"""A recipe's shapes of a model that answers questions, for training and for cost estimates."""

from __future__ import annotations

from tinymusician.models.audio_encoder import AudioEncoderShape
from tinymusician.models.audio_lm import AudioLMShape, LanguageModelShape
from tinymusician.models.spectral_front_end import MATPAC_SCALE, FrontEndConfig
from tinymusician.recipe import UnderstandConfig


def front_end_of(config: UnderstandConfig) -> FrontEndConfig:
    """The front end without the scales of a corpus, for counting parameters."""
    return FrontEndConfig(pitch=MATPAC_SCALE) if config.encoder.pitch_channel else FrontEndConfig()


def audio_lm_shape(config: UnderstandConfig, front_end: FrontEndConfig) -> AudioLMShape:
    """The shapes that a recipe states."""
    encoder, lm = config.encoder, config.language_model
    return AudioLMShape(
        AudioEncoderShape(encoder.width, encoder.layers, encoder.heads, encoder.feed_forward, front_end=front_end),
        config.train.projector_width,
        LanguageModelShape(
            vocabulary=lm.vocabulary,
            width=lm.width,
            layers=lm.layers,
            heads=lm.heads,
            key_value_heads=lm.key_value_heads,
            feed_forward=lm.feed_forward,
        ),
    )

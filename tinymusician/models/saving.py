"""Saves a MusicGen in transformers' layout."""

from __future__ import annotations

from pathlib import Path

from transformers import EncodecFeatureExtractor

from tinymusician.models.protocols import Musicgen, Tokenizer


def save_musicgen(folder: Path, model: Musicgen, tokenizer: Tokenizer) -> None:
    """Write everything that `from_pretrained` and MusicGen's processor read: weights, configurations, tokenizer."""
    for config in (model.config, model.config.text_encoder, model.config.audio_encoder, model.config.decoder):
        setattr(config, "_name_or_path", "")  # noqa: B010 - transformers records the folder of each component
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    rate = model.config.audio_encoder.sampling_rate
    EncodecFeatureExtractor(feature_size=1, sampling_rate=rate, padding_side="left").save_pretrained(folder)

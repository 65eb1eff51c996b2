"""Writing a MusicGen in the layout that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import EncodecFeatureExtractor


def save_musicgen(folder: Path, model: Any, tokenizer: Any) -> None:
    """Everything that `from_pretrained` and MusicGen's processor read: weights, configurations, tokenizer."""
    for config in (model.config, model.config.text_encoder, model.config.audio_encoder, model.config.decoder):
        config._name_or_path = ""  # transformers keeps the folder that a part was loaded from
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    rate = model.config.audio_encoder.sampling_rate
    EncodecFeatureExtractor(feature_size=1, sampling_rate=rate, padding_side="left").save_pretrained(folder)

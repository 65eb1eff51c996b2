"""Audio classifiers in transformers' layout.

For example MIT/ast-finetuned-audioset-10-10-0.4593 for AudioSet's 527 classes. PaSST, which published figures use, is
not available in this layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from tinymusician.errors import ModelError, first_line
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.models.musicgen import model_location
from tinymusician.models.pretrained import load_pretrained
from tinymusician.models.prune_layers import weights_digest
from tinymusician.runtime.audio_reader import Wave

_BATCH = 32


class TransformersTagger:
    """A classifier in transformers' layout, on the start of a clip, as long as its feature extractor takes."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        """Load a classifier.

        Raises:
            ModelError: there is none of this name.
        """
        folder = model_location(name)
        self._model: Any = load_pretrained(AutoModelForAudioClassification, name, folder).to(device)
        try:
            self._features: Any = AutoFeatureExtractor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"tagger {name!r}: its preprocessor_config.json cannot be loaded ({first_line(error)})"
            ) from error
        self._device, self.rate = device, int(self._features.sampling_rate)
        self.facts = {"kind": "transformers", "weights": weights_digest(self._model)}

    @torch.no_grad()
    def __call__(self, waves: Sequence[Wave]) -> dict[str, Floats]:
        """Class probabilities [N, classes] of every wave, under the single question `class`."""
        probabilities = []
        for start in range(0, len(waves), _BATCH):
            inputs = self._features(
                list(waves[start : start + _BATCH]), sampling_rate=self.rate, return_tensors="pt", padding=True
            )
            logits = self._model(**{name: value.to(self._device) for name, value in inputs.items()}).logits
            probabilities.append(logits.softmax(-1).cpu().numpy())
        return {"class": np.concatenate(probabilities)}

"""The packaged band-tagger as a classifier of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.embedding import in_batches, windows
from tinymusician.house_band.tagger_model import RATE, SECONDS, BandTagger
from tinymusician.models.prune_layers import weights_digest
from tinymusician.runtime.audio_reader import Wave

_BATCH = 32


class HouseBandTagger:
    """Instrument, tempo and key, on the first five seconds of a clip."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._tagger, self._device = BandTagger.load(folder).to(device), device
        self.rate = RATE
        self.facts = {"kind": "band-tagger", "weights": weights_digest(self._tagger), "seconds": SECONDS}

    @torch.no_grad()
    def __call__(self, waves: Sequence[Wave]) -> dict[str, Floats]:
        """By question, class probabilities [N, classes] of every wave."""
        clips = [windows(wave[: SECONDS * RATE], SECONDS * RATE)[:1] for wave in waves]
        batches = [self._tagger(torch.from_numpy(batch).to(self._device)) for batch in in_batches(clips, _BATCH)]
        return {
            question: np.concatenate([batch[question].softmax(-1).cpu().numpy() for batch in batches])
            for question in batches[0]
        }

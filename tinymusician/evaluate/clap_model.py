"""CLAP in transformers' layout: laion/larger_clap_music and others by hub id or folder, and the packaged band-clap.

The log-mel features are computed here in batches, equal to those of transformers' `ClapFeatureExtractor`, which
processes clips one by one, crops long ones at random, and marks a random clip of a batch as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ClapFeatureExtractor, ClapModel

from tinymusician.errors import ModelError, first_line
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.embedding import in_batches, split_by_clip, windows
from tinymusician.models.musicgen import load_tokenizer, model_location
from tinymusician.models.pretrained import load_pretrained
from tinymusician.models.prune_layers import weights_digest
from tinymusician.runtime.audio_reader import Wave

_BATCH = 32
_BATCH_SIZE = 2
_LEAST_POWER = 1e-10


class ClapEmbedder:
    """Audio and text in CLAP's joint space, each vector of length one."""

    def __init__(self, name: str = "band-clap", device: str = "cpu") -> None:
        """Load a ClapModel.

        Raises:
            ModelError: there is none of this name.
        """
        folder = model_location(name)
        self.model: Any = load_pretrained(ClapModel, name, folder).to(device)
        try:
            self._features = ClapFeatureExtractor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"embedding model {name!r}: its preprocessor_config.json cannot be loaded ({first_line(error)})"
            ) from error
        self._tokenizer = load_tokenizer(name)
        self.rate = int(self._features.sampling_rate)
        self._size = int(self._features.nb_max_samples)
        self.mel = MelSpectrogram(self._features, device)
        self.facts = {"kind": "clap", "weights": weights_digest(self.model), "window": self._size, "rate": self.rate}

    def __call__(self, waves: Sequence[Wave]) -> list[Floats]:
        """Vectors [windows, D] of every wave."""
        clips = [windows(wave, self._size) for wave in waves]
        embeddings = [self._embedded(batch) for batch in in_batches(clips, _BATCH)]
        return split_by_clip(np.concatenate(embeddings), clips)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Floats:
        """A vector for every prompt, [N, D]."""
        embeddings = []
        for start in range(0, len(prompts), _BATCH):
            words = list(prompts[start : start + _BATCH])
            inputs = self._tokenizer(words, padding=True, truncation=True, return_tensors="pt")
            tensors = {name: inputs[name].to(self.mel.device) for name in ("input_ids", "attention_mask")}
            embeddings.append(self.model.get_text_features(**tensors))
        return _unit(torch.cat(embeddings))

    @torch.no_grad()
    def _embedded(self, batch: Floats) -> Floats:
        features = self.mel(torch.from_numpy(batch))
        if self.model.config.audio_config.enable_fusion:
            features = features.repeat(1, 4, 1, 1)
        long = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        return _unit(self.model.get_audio_features(input_features=features, is_longer=long))


class MelSpectrogram:
    """Transformers' log-mel features, for many windows at a time."""

    def __init__(self, features: ClapFeatureExtractor, device: str) -> None:
        fusion = features.truncation == "fusion"
        filters = features.mel_filters if fusion else features.mel_filters_slaney
        self.device = device
        self._filters = torch.from_numpy(filters).float().contiguous().to(device)
        self._window = torch.hann_window(features.fft_window_size, device=device)
        self._hop = features.hop_length

    def __call__(self, waves_BN: Tensor) -> Tensor:
        """Decibels [B, 1, frames, bands]; few windows at a time, whose spectra stay in the processor's cache."""
        return torch.cat([self._decibels(part.float().to(self.device)) for part in torch.split(waves_BN, _BATCH_SIZE)])

    def _decibels(self, waves_BN: Tensor) -> Tensor:
        size = len(self._window)
        spectrum = torch.stft(waves_BN, size, self._hop, window=self._window, pad_mode="reflect", return_complex=True)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        return 10 * torch.log10((power.transpose(1, 2) @ self._filters).clamp_(min=_LEAST_POWER))[:, None]


def _unit(vectors: Tensor) -> Floats:
    return np.asarray(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())

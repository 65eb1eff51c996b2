"""EnCodec's encoder as an embedding: its states before quantization, one vector per codec frame.

Like fadtk's `encodec-emb` (Gui et al., arXiv 2311.01616), from any EnCodec in transformers' layout, or the codec of a
MusicGen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoConfig, EncodecModel

from tinymusician.errors import ModelError, first_line
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.models.musicgen import load_musicgen, model_location
from tinymusician.models.pretrained import load_pretrained
from tinymusician.models.protocols import Codec
from tinymusician.models.prune_layers import weights_digest
from tinymusician.runtime.audio_reader import Wave


class EncodecEmbedder:
    """The encoder's states, [frames, D]."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        """Load an EnCodec, or the codec of a MusicGen.

        Raises:
            ModelError: there is none of this name, or it is not mono.
        """
        self._codec = _codec(name).eval().to(device)
        config = self._codec.config
        if config.audio_channels != 1 or config.normalize:
            raise ModelError(f"embedding model {name!r}: {config.audio_channels} channels; a mono codec is needed")
        self.rate, self._device = int(config.sampling_rate), device
        self.facts = {"kind": "encodec", "weights": weights_digest(self._codec), "rate": self.rate}

    @torch.no_grad()
    def __call__(self, waves: Sequence[Wave]) -> list[Floats]:
        """Vectors [frames, D] of every wave."""
        latents = []
        for wave in waves:
            states = self._codec.encoder(torch.from_numpy(np.asarray(wave, np.float32))[None, None].to(self._device))
            latents.append(np.asarray(states[0].T.cpu().numpy()))
        return latents


def _codec(name: str) -> Codec:
    folder = model_location(name)
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
    except (OSError, ValueError) as error:
        raise ModelError(f"embedding model {name!r}: no EnCodec or MusicGen ({first_line(error)})") from error
    codec: Codec
    codec = load_pretrained(EncodecModel, name, folder) if kind == "encodec" else load_musicgen(name).audio_encoder
    return codec

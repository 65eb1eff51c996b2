"""Clips that passed through a codec, as all music that a MusicGen generates has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tinymusician.errors import ModelError
from tinymusician.models.musicgen import load_musicgen
from tinymusician.models.protocols import Codec
from tinymusician.models.spectral_front_end import RATE
from tinymusician.understand.spectra import Waves


def load_codec(name: str) -> Codec:
    """The codec of a MusicGen by name.

    Raises:
        ModelError: it has another rate than the audio encoder.
    """
    codec = load_musicgen(name).audio_encoder
    if codec.config.sampling_rate != RATE:
        raise ModelError(f"codec {name!r}: {codec.config.sampling_rate} Hz; an audio encoder reads {RATE} Hz")
    return codec


def with_reconstructions(waves: Waves, is_reconstructed: npt.NDArray[np.bool_], codec: Codec) -> Waves:
    """Read clips with `waves`, and replace those that are reconstructed, [clips], by the codec's reconstruction."""

    @torch.no_grad()
    def read(rows: slice) -> npt.NDArray[np.float32]:
        clips = waves(rows)
        if len(reconstructed := np.flatnonzero(is_reconstructed[rows])):
            codes = codec.encode(torch.from_numpy(clips[reconstructed])[:, None]).audio_codes
            clips[reconstructed] = codec.decode(codes, [None]).audio_values[:, 0, : clips.shape[1]].numpy()
        return clips

    return read

"""VGGish, the embedding of the first FAD, from a local checkpoint in PyTorch's layout.

Hershey et al., arXiv 1609.09430; front end and network as released with AudioSet: 16 kHz, examples of 0.96 s, 64 mel
bands of magnitude spectra. The 128 values are those before the last ReLU, without PCA or quantization, as in fadtk. The
checkpoint is `vggish-10086976.pth` of the torchvggish project (Apache-2.0).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from tinymusician.errors import ModelError
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.embedding import in_batches, split_by_clip, windows
from tinymusician.runtime.audio_reader import Wave

_RATE, _FRAME, _HOP, _FFT, _BANDS = 16_000, 400, 160, 512, 64
_LOWEST, _HIGHEST, _OFFSET = 125.0, 7500.0, 0.01
_EXAMPLE_FRAMES = 96
_EXAMPLE = _EXAMPLE_FRAMES * _HOP
_CHANNELS = ((64,), (128,), (256, 256), (512, 512))
_BATCH = 32


class VggishEmbedder:
    """One vector per 0.96 s, [windows, 128]."""

    def __init__(self, checkpoint: str, device: str = "cpu") -> None:
        """Load the checkpoint.

        Raises:
            ModelError: there is no such file, or it is not a VGGish.
        """
        path = Path(checkpoint).expanduser()
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            self._network = network()
            self._network.load_state_dict({name: weights[name] for name in self._network.state_dict()})
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except Exception as error:  # torch raises OSError, KeyError, RuntimeError, UnpicklingError and others
            raise ModelError(
                f"VGGish {checkpoint!r}: no such checkpoint; download vggish-10086976.pth of harritaylor/torchvggish, "
                f"and give its path"
            ) from error
        self._network.eval().to(device)
        self._device, self.rate = device, _RATE
        self.facts = {"kind": "vggish", "weights": digest, "window": _EXAMPLE}

    def __call__(self, waves: Sequence[Wave]) -> list[Floats]:
        """Vectors [windows, 128] of every wave."""
        clips = [windows(wave, _EXAMPLE) for wave in waves]
        embeddings = [self._embedded(batch) for batch in in_batches(clips, _BATCH)]
        return split_by_clip(np.concatenate(embeddings), clips)

    @torch.no_grad()
    def _embedded(self, batch: Floats) -> Floats:
        examples = log_mel(torch.from_numpy(np.asarray(batch, np.float32)).to(self._device))
        return np.asarray(self._network(examples[:, None]).cpu().numpy())


def log_mel(waves_BN: Tensor) -> Tensor:
    """Log-mel examples [B, 96, 64] of windows of 0.96 s; the last frames are padded with silence."""
    padded = nn.functional.pad(waves_BN, (0, _FRAME - _HOP))
    window = torch.hann_window(_FRAME, device=waves_BN.device)
    spectra = torch.fft.rfft(padded.unfold(1, _FRAME, _HOP) * window, _FFT).abs()
    filters = mel_filter_bank(_FFT // 2 + 1, _BANDS, _LOWEST, _HIGHEST, _RATE, norm=None, mel_scale="htk")
    return torch.log(spectra @ torch.from_numpy(filters).to(spectra) + _OFFSET)


class _ChannelsLast(nn.Module):
    """Flatten [B, C, T, F] with channels fastest, as in TensorFlow, where the weights come from."""

    def forward(self, states: Tensor) -> Tensor:
        return states.permute(0, 2, 3, 1).flatten(1)


def network() -> nn.Sequential:
    """The network, its parameters named as in the checkpoint."""
    layers: list[nn.Module] = []
    before = 1
    for group in _CHANNELS:
        for channels in group:
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    wide = before * (_EXAMPLE_FRAMES // 16) * (_BANDS // 16)
    parts = nn.Sequential()
    parts.add_module("features", nn.Sequential(*layers))
    parts.add_module("flatten", _ChannelsLast())
    parts.add_module(
        "embeddings",
        nn.Sequential(nn.Linear(wide, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)),
    )
    return parts

"""Trains the house band's EnCodec on rendered clips."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tinymusician.house_band.corpus import RenderedSplit
from tinymusician.models.codec import start_from_closed_form
from tinymusician.models.protocols import Codec
from tinymusician.models.quantizer import QuantizerOutput, QuantizerTrainer
from tinymusician.models.spectral import log_mel, si_sdr, spectral_distance
from tinymusician.runtime.pcm16 import from_pcm16
from tinymusician.training.task import Model

WAVEFORM, SI_SDR, COMMITMENT = 10.0, 0.05, 0.25
"""The weights of the waveform L1, of each dB of distortion, and of the commitment loss; the spectral loss has weight 1.
"""


class AudioBatch(NamedTuple):
    """`audio` [B, N] in [-1, 1], and the number of codebooks of each row, `depth` [B]."""

    audio: Tensor
    depth: Tensor
    generator: torch.Generator


class TrainableCodec(nn.Module):
    """An EnCodec with a trainable quantizer: wave [B, N] to wave [B, N], through `depth` codebooks per row."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec
        self.quantizer = QuantizerTrainer(codec.quantizer)

    def forward(self, batch: AudioBatch) -> tuple[Tensor, QuantizerOutput]:
        latent = self.codec.encoder(batch.audio[:, None]).float()
        quantized = self.quantizer(latent, batch.depth, batch.generator)
        return self.codec.decoder(quantized.latent)[:, 0, : batch.audio.shape[1]].float(), quantized


class CodecTask:
    """Batches are random one-second pieces; a third of the rows use fewer codebooks, so that each level matters."""

    def __init__(
        self,
        codec: Codec,
        train: RenderedSplit,
        held_out: RenderedSplit,
        batch_size: int,
        seed: int,
        samples: int = 16_000,
    ) -> None:
        self.module = TrainableCodec(codec)
        self.train, self.batch_size, self.seed, self.samples = train, batch_size, seed, samples
        self.held_out = torch.from_numpy(held_out.audio(slice(0, 48)))

    def start(self, clips: int = 400) -> None:
        """Initialize the codec in closed form, and its codebooks by k-means."""
        generator = torch.Generator().manual_seed(self.seed)
        torch.manual_seed(self.seed)
        audio = torch.from_numpy(self.train.audio(slice(0, clips)))
        start_from_closed_form(self.module.codec, audio)
        with torch.no_grad():
            latents = self.module.codec.encoder(audio[:, None]).transpose(1, 2).flatten(0, 1)
        chosen = torch.randperm(len(latents), generator=generator)[:40_000]
        self.module.quantizer.start(latents[chosen], generator)

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """Random clips."""
        return self._draw(step, part, parts)[0]

    def batch(self, step: int, part: int, parts: int) -> AudioBatch:
        """One second of each clip of a microbatch."""
        rows, rng = self._draw(step, part, parts)
        offsets = rng.integers(0, self.train.samples.shape[1] - self.samples, self.batch_size)
        pieces = [self.train.samples[row, at : at + self.samples] for row, at in zip(rows, offsets, strict=True)]
        depth = np.where(rng.random(self.batch_size) < 0.35, rng.integers(1, 5, self.batch_size), 4)
        audio = torch.from_numpy(from_pcm16(np.stack(pieces)))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return AudioBatch(audio, torch.from_numpy(depth), generator)

    def _draw(self, step: int, part: int, parts: int) -> tuple[npt.NDArray[np.int64], np.random.Generator]:
        rng = np.random.default_rng((self.seed, step, part, parts))
        return rng.integers(0, len(self.train.clips), self.batch_size), rng

    def loss(
        self, model: Model, batch: AudioBatch, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Spectral distance + waveform L1 + distortion in dB + commitment."""
        made, quantized = model(batch)
        spectral = spectral_distance(made, batch.audio, 16_000)
        waveform = (made - batch.audio).abs().mean()
        distortion = si_sdr(made, batch.audio).clamp(-5, 30).mean()
        loss = spectral + WAVEFORM * waveform - SI_SDR * distortion + COMMITMENT * quantized.commitment
        return loss, {"spectral": spectral, "waveform": waveform, "si_sdr": distortion}

    def validate(self, model: Model) -> dict[str, float]:
        """Held-out SI-SDR and log-mel distance with 1, 2, 3 and 4 codebooks, and how many codes each uses."""
        return codec_quality(self.module.codec, self.held_out.to(next(self.module.parameters()).device))


@torch.no_grad()
def codec_quality(codec: Codec, audio_BN: Tensor) -> dict[str, float]:
    """SI-SDR (dB) and log-mel L1 of reconstructions by number of codebooks; the used share of each codebook."""
    codes = codec.encode(audio_BN[:, None]).audio_codes[0]
    true = log_mel(audio_BN, 16_000, 1024, 64, 256)
    metrics: dict[str, float] = {}
    for depth in range(1, codes.shape[1] + 1):
        made = codec.decode(codes[None, :, :depth], [None]).audio_values[:, 0, : audio_BN.shape[1]]
        metrics[f"si_sdr/{depth}"] = si_sdr(made, audio_BN).mean().item()
        metrics[f"log_mel/{depth}"] = (log_mel(made, 16_000, 1024, 64, 256) - true).abs().mean().item()
    for level in range(codes.shape[1]):
        used = len(set(codes[:, level].flatten().tolist()))
        metrics[f"used/{level + 1}"] = used / codec.config.codebook_size
    return metrics

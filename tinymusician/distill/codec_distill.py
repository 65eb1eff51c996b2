"""Distils a codec: the student's audio follows the teacher's, on codes that the teacher's language model sampled.

With the teacher's decoder D, its encoder E, and x = D(codes):

    spectral    multi-resolution spectral distance of the student's audio to x (models/spectral.py)
    waveform    mean |difference| over mean |x|
    features    relative error of the outputs of the decoder's stages, each through a linear map that is learned with it
    latents     relative error of the student's encoder on x against E(x), which the same quantizer reads
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.balance import Method
from tinymusician.distill.component import ComponentTask
from tinymusician.distill.hidden_states import relative_error
from tinymusician.distill.least_squares import fit
from tinymusician.distill.signals import Rows
from tinymusician.models.protocols import Codec
from tinymusician.models.spectral import log_mel, si_sdr, spectral_distance
from tinymusician.training.task import Model

_VALIDATION_PIECES, _MAX_FIT_FRAMES = 48, 8192
"""The number of held-out pieces of validation, and the maximum number of frames that a map is fitted to."""


class CodecOutput(NamedTuple):
    """A decoder's output for latents: `wave` [B, N], and the outputs of its stages, each [B, C, n]."""

    wave: Tensor
    features: tuple[Tensor, ...]


def decode_latents(codec: Codec, latent_BDT: Tensor) -> CodecOutput:
    """Run an EnCodec's decoder on dequantized latents; its stages end with the LSTM and with every upsampling."""
    features, values = [], latent_BDT
    for layer in codec.decoder.layers:
        values = layer(values)
        if type(layer).__name__ in {"EncodecLSTM", "EncodecConvTranspose1d"}:
            features.append(values)
    return CodecOutput(values[:, 0], tuple(features))


def latents_of(codec: Codec, codes_BKT: Tensor) -> Tensor:
    """The latents that an EnCodec's decoder reads for codes, [B, D, T]."""
    latent: Tensor = codec.quantizer.decode(codes_BKT.transpose(0, 1))
    return latent


def expected_latents(codec: Codec, logits_BKTV: Tensor) -> Tensor:
    """The mean of the latents over a distribution of codes, [B, D, T]; unlike sampled codes, it is differentiable."""
    shares = logits_BKTV.float().softmax(-1)
    embeddings = [layer.codebook.embed for layer in codec.quantizer.layers[: logits_BKTV.shape[1]]]
    return torch.stack([shares[:, k] @ book for k, book in enumerate(embeddings)]).sum(0).transpose(1, 2)


class ProjectedCodec(nn.Module):
    """A student's codec with one linear map per stage to its teacher's channels, which are not part of the student."""

    def __init__(self, codec: Codec, teacher: Codec) -> None:
        super().__init__()
        self.codec = codec
        latent = torch.zeros(1, codec.config.hidden_size, 1)
        with torch.no_grad():
            widths = [[stage.shape[1] for stage in decode_latents(one, latent).features] for one in (codec, teacher)]
        self.projections = nn.ModuleList(nn.Conv1d(prune, wide, 1) for prune, wide in zip(*widths, strict=True))

    @torch.no_grad()
    def fit(self, teacher: Codec, codes_BKT: Tensor) -> None:
        """Initialize the maps by least squares on these codes."""
        latent = latents_of(teacher, codes_BKT)
        pairs = zip(decode_latents(self.codec, latent).features, decode_latents(teacher, latent).features, strict=True)
        for one, (states, targets) in zip(self.projections, pairs, strict=True):
            assert isinstance(one, nn.Conv1d)
            some = [stage.transpose(1, 2).flatten(0, 1) for stage in (states, targets)]
            every = -(-len(some[0]) // _MAX_FIT_FRAMES)
            fit(one, some[0][::every], some[1][::every])

    def forward(self, latent_BDT: Tensor, wave_BN: Tensor) -> tuple[CodecOutput, Tensor]:
        """The audio of latents, with features in the teacher's width, and the encoder's latents of a wave."""
        sound = decode_latents(self.codec, latent_BDT)
        features = (one(stage) for one, stage in zip(self.projections, sound.features, strict=True))
        return CodecOutput(sound.wave, tuple(features)), self.codec.encoder(wave_BN[:, None])


def pieces(tokens: TokenDataset, rows: Rows, frames: int, rng: np.random.Generator) -> Tensor:
    """Codes [B, K, frames] from a random position of each row."""
    longest = tokens.codes.shape[2]
    starts = rng.integers(0, max(longest - frames, 0) + 1, len(rows))
    cut = [tokens.codes[row, :, start : start + frames] for row, start in zip(rows, starts, strict=True)]
    return torch.from_numpy(np.stack(cut).astype(np.int64))


class CodecTargets(NamedTuple):
    """The `latent` [B, D, T] of codes, the teacher's output for it, and its encoder's latents of that."""

    latent: Tensor
    sound: CodecOutput
    encoded: Tensor


class CodecDistillTask(ComponentTask):
    """Trains a codec; its quantizer and the teacher are frozen."""

    def __init__(
        self,
        codec: ProjectedCodec,
        teacher: Codec,
        tokens: TokenDataset,
        held_out: TokenDataset,
        frames: int,
        method: Method,
        batch_size: int,
        seed: int,
        device: str,
    ) -> None:
        """`teacher` is a codec; pieces have so many `frames`."""
        self.codec = codec
        self.teacher, self.tokens, self.frames = teacher.to(device).eval().requires_grad_(False), tokens, frames
        rows = np.arange(min(len(held_out.codes), _VALIDATION_PIECES))
        self._judged = pieces(held_out, rows, frames, np.random.default_rng(seed)).to(device)
        super().__init__(codec, method, len(tokens.codes), batch_size, seed, device)

    def batch(self, step: int, part: int, parts: int) -> Tensor:
        """Codes [B, K, T]."""
        rng = np.random.default_rng((self.seed, step, part))
        return pieces(self.tokens, self.rows(step, part, parts), self.frames, rng)

    def targets(self, batch: Tensor) -> CodecTargets:
        """The teacher's audio of codes, and its encoder's latents of it."""
        latent = latents_of(self.teacher, batch)
        sound = decode_latents(self.teacher, latent)
        return CodecTargets(latent, sound, self.teacher.encoder(sound.wave[:, None]))

    def inputs(self, batch: Tensor, targets: CodecTargets) -> tuple[Tensor, Tensor]:
        """The latents, and the wave."""
        return targets.latent, targets.sound.wave

    def losses(self, output: tuple[CodecOutput, Tensor], batch: Tensor, targets: CodecTargets) -> dict[str, Tensor]:
        """All four losses."""
        (wave, features), latents = output
        true = targets.sound.wave
        errors = [relative_error(one, other) for one, other in zip(features, targets.sound.features, strict=True)]
        return {
            "spectral": spectral_distance(wave, true, self.teacher.config.sampling_rate),
            "waveform": (wave - true).abs().mean() / true.abs().mean(),
            "features": torch.stack(errors).mean(),
            "latents": relative_error(latents, targets.encoded),
        }

    @torch.no_grad()
    def validate(self, model: Model) -> dict[str, float]:
        """The closeness on held-out pieces."""
        totals: dict[str, float] = {}
        for codes in torch.split(self._judged, self.batch_size):
            for name, value in sound_closeness(self.codec.codec, self.teacher, codes).items():
                totals[name] = totals.get(name, 0.0) + value * len(codes) / len(self._judged)
        return totals


@torch.no_grad()
def sound_closeness(codec: Codec, teacher: Codec, codes_BKT: Tensor) -> dict[str, float]:
    """The closeness of a codec's audio to its teacher's, for the same codes.

    `spectral` distance, `log_mel` L1 (natural logarithm), `si_sdr` in dB, and `same_codes`: the share of codes on which
    both encoders agree for the teacher's audio.
    """
    latent, rate = latents_of(teacher, codes_BKT), teacher.config.sampling_rate
    target, made = decode_latents(teacher, latent).wave, decode_latents(codec, latent).wave
    mels = [log_mel(wave, rate, 1024, 64, 256) for wave in (made, target)]
    codes = [one.encode(target[:, None]).audio_codes for one in (codec, teacher)]
    return {
        "spectral": spectral_distance(made, target, rate).item(),
        "log_mel": (mels[0] - mels[1]).abs().mean().item(),
        "si_sdr": si_sdr(made, target).mean().item(),
        "same_codes": (codes[0] == codes[1]).float().mean().item(),
    }

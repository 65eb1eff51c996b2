"""band-tagger: classifies instrument, tempo and key of the house band's clips.

Two small convolutional networks: one on log-mel spectra, for instrument and tempo; one on semitones for keys, which is
equivariant to transposition (every filter slides over pitch, octaves are folded, tonics share their weights).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from tinymusician.errors import ModelError

RATE = 16_000
SECONDS = 5
_MEL_WINDOW, _MEL_HOP, _BANDS = 1024, 320, 64
_PITCH_WINDOW, _PITCH_HOP = 4096, 640
_LOWEST_NOTE, _OCTAVES = 48, 5
QUESTIONS = ("instrument", "tempo", "key")
Classes = dict[str, tuple[str, ...]]


class BandTagger(nn.Module):
    """Waves [B, N] at 16 kHz in, logits [B, classes] for every question out.

    `classes` are the possible answers to every question; keys are the twelve majors from C on, then the minors.
    """

    mel: Tensor
    notes: Tensor

    def __init__(self, classes: Classes, width: int = 48) -> None:
        super().__init__()
        assert tuple(classes) == QUESTIONS
        assert len(classes["key"]) == 24
        self.classes, self.width = classes, width
        filters = mel_filter_bank(_MEL_WINDOW // 2 + 1, _BANDS, 50, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("mel", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("notes", torch.from_numpy(semitones()).float(), persistent=False)
        self.timbre = nn.Sequential(
            *_block(1, width // 2, 2),
            *_block(width // 2, width, 2),
            *_block(width, 2 * width, 2),
            *_block(2 * width, 2 * width, 2),
        )
        self.instrument = nn.Linear(2 * width, len(classes["instrument"]))
        self.tempo = nn.Linear(2 * width, len(classes["tempo"]))
        self.pitch = nn.Sequential(*_block(1, width, 1), *_block(width, width, 1))
        self.key = nn.Conv1d(width, 2, 12, padding="same", padding_mode="circular")

    def forward(self, waves_BN: Tensor) -> dict[str, Tensor]:
        timbre = self.timbre(_spectra(waves_BN, _MEL_WINDOW, _MEL_HOP, self.mel)).mean((2, 3))
        pitch = self.pitch(_spectra(waves_BN, _PITCH_WINDOW, _PITCH_HOP, self.notes)).mean(2)
        folded = pitch.unflatten(-1, (_OCTAVES, 12)).mean(2)
        return {
            "instrument": self.instrument(timbre),
            "tempo": self.tempo(timbre),
            "key": self.key(folded).flatten(1),
        }

    def save(self, folder: Path) -> None:
        """Write weights and configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.half().contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors"
        )
        content = {"model_type": "band-tagger", "width": self.width, "classes": self.classes}
        (folder / "config.json").write_text(json.dumps(content, indent=2))

    @classmethod
    def load(cls, folder: Path) -> BandTagger:
        """Read what `save` wrote.

        Raises:
            ModelError: there is none, or it has other questions.
        """
        try:
            content = json.loads((folder / "config.json").read_text())
            tagger = cls(
                {question: tuple(answers) for question, answers in content["classes"].items()}, content["width"]
            )
            weights = load_file(folder / "model.safetensors")
            tagger.load_state_dict({name: value.float() for name, value in weights.items()})
        except Exception as error:  # OSError, KeyError, RuntimeError, SafetensorError
            raise ModelError(f"tagger {str(folder)!r}: holds no loadable band-tagger") from error
        return tagger.eval()


def semitones() -> npt.NDArray[np.float64]:
    """Triangular filters of a semitone's width over the spectrum's bins, [bins, notes]."""
    bins = np.fft.rfftfreq(_PITCH_WINDOW, 1 / RATE)
    pitches = 69 + 12 * np.log2(np.maximum(bins, 1e-3) / 440)
    notes = _LOWEST_NOTE + np.arange(12 * _OCTAVES)
    filters: npt.NDArray[np.float64] = np.maximum(0, 1 - np.abs(pitches[:, None] - notes))
    return filters


def _spectra(waves_BN: Tensor, window: int, hop: int, filters: Tensor) -> Tensor:
    """Log energies [B, 1, frames, filters], minus each clip's mean."""
    spectrum = torch.stft(
        waves_BN, window, hop, window=torch.hann_window(window, device=waves_BN.device), return_complex=True
    )
    energy = torch.log1p(100 * (spectrum.abs().square().transpose(1, 2) @ filters))
    return (energy - energy.mean((1, 2), keepdim=True))[:, None]


def _block(before: int, after: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(4, after), nn.GELU()]

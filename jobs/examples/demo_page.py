"""The page of `make demo`: players and spectrograms, training curves, sizes and speed, and what to try next."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinymusician.artifacts.provenance import machine
from tinymusician.artifacts.runs import RunStore
from tinymusician.distill.plots import plot_metrics
from tinymusician.evaluate.audio import encode_flac
from tinymusician.evaluate.degenerate import examine
from tinymusician.evaluate.spectrograms import plot_spectrogram
from tinymusician.html_report import (
    html_note,
    html_picture,
    html_player,
    html_side_by_side,
    html_table,
    html_text,
    page,
)
from tinymusician.runtime.audio_reader import Wave


class DemoClip(NamedTuple):
    """A mono wave at a rate in Hz."""

    wave: Wave
    rate: int


class Generated(NamedTuple):
    """What a model generated, one clip per prompt, in one batch; its bytes, and seconds per second of audio."""

    model: str
    clips: tuple[DemoClip, ...]
    size: int
    real_time_factor: float


def read_clips(files: Sequence[Path]) -> tuple[DemoClip, ...]:
    """Read WAV files."""
    import soundfile

    return tuple(DemoClip(*soundfile.read(file, dtype="float32")) for file in files)


def demo_page(
    run: RunStore, device: Path, prompts: Sequence[str], generated: Sequence[Generated], minutes: float
) -> str:
    """The page; it needs no other file."""
    metrics = run.result().metrics
    sections = [("Listen", _players(prompts, generated)), ("Size and speed", _table(generated))]
    summary = (
        f"KL to the teacher on held-out samples: {metrics['kl_initial']:.3f} nats per code before training, "
        f"{metrics['kl_final']:.3f} after it."
    )
    sections += [("Training", html_note(summary) + _curves(run)), ("Next", html_text(_commands(run, device)))]
    sections += [("Conditions", html_note(f"{machine()}; {minutes:.1f} minutes in all; run {run.id}."))]
    return page("TinyMusician: a student of the house band", sections)


def _players(prompts: Sequence[str], generated: Sequence[Generated]) -> str:
    rows = []
    for number, prompt in enumerate(prompts):
        clips = [(one.model, one.clips[number]) for one in generated]
        players = [
            html_player(encode_flac(clip.wave, clip.rate), "audio/flac", model, plot_spectrogram(clip.wave, clip.rate))
            for model, clip in clips
        ]
        rows.append(f"{html_note(prompt)}{html_side_by_side(players)}")
    return "".join(rows)


def _table(generated: Sequence[Generated]) -> str:
    rows = [
        (
            one.model,
            f"{one.size / 1e6:.1f}",
            f"{one.real_time_factor:.2f}",
            f"{np.mean([examine(clip.wave, clip.rate).quiet for clip in one.clips]):.1%}",
        )
        for one in generated
    ]
    note = (
        "The real-time factor is the time for a second of audio, all prompts in one batch; below 1 is faster than real "
        "time. Quiet frames are 50 ms below -45 dB of full scale."
    )
    return html_table(("", "MB", "real-time factor", "quiet frames"), rows) + html_note(note)


def _curves(run: RunStore) -> str:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "training.png"
        plot_metrics(run.metrics(), picture)
        return html_picture(picture.read_bytes(), "loss, KL, agreement and entropy by training step")


def _commands(run: RunStore, device: Path) -> str:
    artifact = str(run.result().artifact).partition("@")[0]
    return "\n".join(
        (
            f'tmctl generate "a slow flute waltz" --model {device} -o waltz.wav',
            f"tmctl serve {artifact}-bundle                  # the web page and the HTTP API",
            f"tmctl status {run.id}",
            f"tmctl artifacts lineage {artifact}-bundle",
            f"tmctl submit evaluate band --model teacher --model {artifact}-bundle --set evaluate.clips=50",
            "tmctl submit distill band --set training.steps=300   # a better student",
        )
    )

"""Recordings and tables from elsewhere, in the folder that TINYMUSICIAN_TEST_DATA names; skipped without it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.bundles import write_bundle
from tinymusician.data.captioned import load_folder, load_musiccaps
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.distill.sequences import ClipCodes
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.reference import FileClips
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.runtime.audio_reader import read_clip
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator

DATA = os.environ.get("TINYMUSICIAN_TEST_DATA")
RECORDINGS = sorted((Path(DATA) / "recordings").glob("*.ogg")) if DATA else []
pytestmark = pytest.mark.skipif(DATA is None, reason="TINYMUSICIAN_TEST_DATA names no folder")


@pytest.fixture(scope="module")
def generator(tiny_musicgen: Path, tmp_path_factory: pytest.TempPathFactory) -> MusicGenerator:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(load_musicgen(str(tiny_musicgen)), tiny_musicgen / "tokenizer.json", folder, continuation=True)
    return load_generator(folder, 1)


@pytest.fixture(scope="module")
def clap() -> ClapEmbedder:
    return ClapEmbedder("band-clap")


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_every_recording_is_continued_evaluated_and_trained_on(
    recording: Path, generator: MusicGenerator, clap: ClapEmbedder, tiny_musicgen: Path, tmp_path: Path
) -> None:
    seconds = soundfile.info(recording).duration
    clip = read_clip(recording, generator.codec.shape.sampling_rate, seconds=min(seconds, 8))
    assert clip.changed == ("resampled from 22050 Hz",)
    length = len(clip.wave) / generator.codec.shape.sampling_rate
    music = generator.generate(GenerationRequest("a slow fiddle reel", seconds=length + 0.5, clip=clip.wave))
    assert len(music) == pytest.approx(len(clip.wave) + 400, abs=16)

    shutil.copy(recording, tmp_path)
    (tmp_path / f"{recording.stem}.txt").write_text("music")
    (wave,) = [FileClips(load_folder(tmp_path), "folder", 1, 5.0, 0).wave(0, clap.rate).wave]
    (vectors,) = clap([wave])
    assert np.isfinite(vectors).all()

    model = load_musicgen(str(tiny_musicgen))
    source = ClipCodes(model.audio_encoder, load_tokenizer(str(tiny_musicgen)), tmp_path, 50)
    with torch.no_grad():
        shard = source.make(0)
    assert shard["pieces"].tolist() == [int(seconds)], "one piece a second"


def test_musiccaps_real_table(tmp_path: Path) -> None:
    """5,521 captions; its clips by the files that are there, and its captions as prompts."""
    table = Path(str(DATA)) / "musiccaps-public.csv"
    name = table.read_text("utf-8").splitlines()[1].partition(",")[0]
    soundfile.write(tmp_path / f"{name}.wav", np.ones(16_000) / 2, 16_000)
    captioned = load_musiccaps(table, tmp_path)
    assert [clip.name for clip in captioned.clips] == [name]
    assert len(captioned.left_out["no audio"]) == 5520
    prompts = load_prompts(str(table))
    assert len(prompts) == 5521
    assert len(texts_of(prompts, "test")) == 552
    assert prompts[0].text == captioned.clips[0].caption

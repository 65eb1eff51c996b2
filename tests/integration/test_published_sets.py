"""MusicCaps and MusicBench in their published layouts, made from test tunes: the same clips are read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from jobs.evaluate.open import open_reference
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.clap_score import clap_score
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.house_band.corpus import SEED, RenderedSplit, load_split
from tinymusician.house_band.tunes import assign_splits, corpus_files, tunes_in
from tinymusician.recipe import EvaluateConfig

pytestmark = pytest.mark.slow

CLIPS, SECONDS, RATE = 24, 5, 16_000


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> RenderedSplit:
    """Clips of the test tunes among the first of the corpus, whose split no later tune can change."""
    tunes = assign_splits([tune for place in corpus_files()[:160] for tune in tunes_in(*place)])
    return load_split(tmp_path_factory.mktemp("corpus"), tunes, "test", CLIPS, SEED)


def as_musiccaps(split: RenderedSplit, folder: Path) -> dict[str, Any]:
    """Half of the clips lie cut out, half in the middle of videos of twenty seconds and two channels."""
    (folder / "audio").mkdir()
    columns = ("ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption", "author_id")
    with (folder / "musiccaps-public.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, (*columns, "is_balanced_subset", "is_audioset_eval"))
        table.writeheader()
        for number, caption in enumerate(split.captions):
            row = {"ytid": f"band{number:07}", "start_s": 10, "end_s": 10 + SECONDS, "caption": caption}
            row |= {"audioset_positive_labels": "/m/04rlf", "aspect_list": "[]", "author_id": 1}
            table.writerow(row | {"is_balanced_subset": True, "is_audioset_eval": True})
            wave = split.samples[number]
            if number % 2:
                silence = np.zeros(10 * RATE, np.int16)
                whole = np.concatenate([silence, wave, silence[: 5 * RATE]])
                wave = np.stack([whole, whole], 1)
            soundfile.write(folder / "audio" / f"band{number:07}.wav", wave, RATE)
    return {"kind": "musiccaps", "table": folder / "musiccaps-public.csv", "audio": folder / "audio", "subset": "all"}


def as_musicbench(split: RenderedSplit, folder: Path) -> dict[str, Any]:
    """A JSON object a line, and WAVs below the folder of the table, where its locations say."""
    (folder / "data").mkdir()
    lines = []
    for number, clip in enumerate(split.clips):
        location = f"data/band_{number}.wav"
        soundfile.write(folder / location, split.samples[number], RATE)
        row = {"dataset": "MusicCaps", "location": location, "main_caption": clip.caption, "alt_caption": ""}
        lines.append(json.dumps(row | {"prompt_key": "", "beats": [[], []], "bpm": 120.0, "chords": []}))
    (folder / "MusicBench_test_A.json").write_text("\n".join(lines))
    return {"kind": "musicbench", "table": folder / "MusicBench_test_A.json", "audio": folder}


@pytest.mark.parametrize("layout", [as_musiccaps, as_musicbench])
def test_the_same_clips_and_captions(split: RenderedSplit, layout: Any, tmp_path: Path) -> None:
    """Every clip sounds as it was rendered, and band-clap knows its caption from those of others."""
    reference = {name: str(value) for name, value in layout(split, tmp_path).items()}
    config = EvaluateConfig.model_validate({"reference": reference, "clips": CLIPS, "seconds": SECONDS})
    result = open_reference(config, tmp_path)
    assert result.captions == split.captions
    waves = [result.wave(number, RATE).wave for number in range(CLIPS)]
    for wave, rendered in zip(waves, split.samples, strict=True):
        np.testing.assert_allclose(wave, rendered / 32768, atol=2e-5)
    clap = ClapEmbedder()
    score = clap_score(ClipEmbeddings.of(clap(waves)), clap.text(result.captions), seed=0)
    assert score.shuffled is not None
    assert score.score.low is not None
    assert score.score.low > score.shuffled

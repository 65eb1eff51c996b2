"""README.md's measured section: its table, its sounds, and its markers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.reproduce.readme_figures import BEGIN, END, MAX_AUDIO_BYTES, replace_section, section, write_audio
from tests.evaluation import evaluation
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import DataError
from tinymusician.evaluate.audio import decode_flac, encode_flac
from tinymusician.evaluate.results import AudioClip, EvaluationResult, PromptSamples
from tinymusician.runtime.audio_reader import Wave


def with_samples() -> EvaluationResult:
    result = evaluation()
    clips = tuple(
        AudioClip(model_id=model.model_id, label=model.label, file=f"0-{model.label}.flac") for model in result.models
    )
    conditions = result.provenance.model_copy(update={"versions": {"torch": "2.13.0", "onnxruntime": "1.0"}})
    samples = (
        PromptSamples(prompt="a slow jig", clips=(AudioClip(model_id="real", label="real", file="r.flac"), *clips)),
    )
    return result.model_copy(update={"samples": samples, "provenance": conditions})


def run_with_audio(folder: Path, result: EvaluationResult, wave: Wave, rate: int) -> RunStore:
    run = RunStore(open_store(f"file://{folder}"), "e1")
    for number, clip in enumerate(result.samples[0].clips):
        run.write_audio(clip.file, encode_flac(wave * number / 4, rate))
    return run


def test_section_has_the_numbers_of_the_evaluation() -> None:
    first, second = section(with_samples()).splitlines()[2:4]
    assert first == "| <student> | 5.0 | 0.20 (0.10 to 0.30) |  | 0.500 [0.400, 0.600] |"
    assert second == "| bundle | 5.0 | 0.20 (0.10 to 0.30) | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] |"


def test_audio_is_that_of_the_models_in_their_order(tmp_path: Path) -> None:
    result, tone = with_samples(), np.sin(np.arange(80_000) / 10).astype(np.float32)
    write_audio(run_with_audio(tmp_path / "store", result, tone, 16_000), result, tmp_path / "readme")
    for number, level in enumerate((1 / 4, 2 / 4)):
        wave, rate = decode_flac((tmp_path / f"readme/{number}.flac").read_bytes())
        assert (rate, len(wave)) == (16_000, 4 * 16_000)
        assert abs(wave).max() == pytest.approx(level, rel=1e-3)
    assert (tmp_path / "readme/spectrograms.png").read_bytes().startswith(b"\x89PNG")


def test_audio_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, MAX_AUDIO_BYTES).astype(np.float32)
    result = with_samples()
    with pytest.raises(DataError, match="at most 300000"):
        write_audio(run_with_audio(tmp_path / "store", result, noise, 48_000), result, tmp_path / "readme")
    assert not (tmp_path / "readme").exists()


def test_only_the_lines_between_the_markers_change() -> None:
    assert replace_section(f"# A\n{BEGIN}\nold\n{END}\n## B\n", "new\n") == f"# A\n{BEGIN}\nnew\n{END}\n## B\n"
    with pytest.raises(DataError, match="markers"):
        replace_section("# A\n", "new\n")

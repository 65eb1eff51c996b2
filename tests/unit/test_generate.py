"""`tmctl generate`: its progress on a terminal, and the best of several clips."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from jobs.cli.generate import progress
from jobs.cli.main import app
from tests.unit.test_question_answerer import QUESTIONS, new_model, write_bundle
from tinymusician.quantize.precision import load_plan
from tinymusician.runtime.best_of import rank
from tinymusician.runtime.question_answerer import QuestionAnswerer


def test_progress_bar_starts_before_the_first_frame(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress(50.0) as on_progress:
        for done in (0, 0, 5, 10):
            on_progress(done, 10)
    assert "Traceback" not in capfd.readouterr().err


def test_best_of_writes_the_best_clip_with_its_seed(tmp_path: Path) -> None:
    colour = QUESTIONS[0].model_copy(update={"in_prompts": True})
    judge = write_bundle(tmp_path / "judge", new_model(), load_plan("float32"), (colour,))

    def generate(name: str, seed: int, *options: str) -> Any:
        words = ["generate", "a red march", "--seconds", "0.6", "-o", str(tmp_path / name), "--json"]
        ended = CliRunner().invoke(app, [*words, "--seed", str(seed), *options], catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        (clip,) = json.loads(ended.stdout)["clips"]
        return clip

    best = generate("best.wav", 5, "--best-of", "3", "--judge", str(judge))
    assert best["seed"] == 5 + int(np.argmax(best["adherence"]))
    again = generate("again.wav", best["seed"])
    assert again["adherence"] is None
    assert (tmp_path / "best.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()
    wave, rate = soundfile.read(tmp_path / "best.wav", dtype="float32")
    (score,) = rank(QuestionAnswerer(judge), "a red march", [wave], rate).scores
    assert max(best["adherence"]) == pytest.approx(score, abs=1e-3)


def test_clips_of_several_prompts_are_not_ranked(tmp_path: Path) -> None:
    words = ["generate", "a flute", "--best-of", "2", "--section", "2:a fiddle", "-o", str(tmp_path / "a.wav")]
    ended = CliRunner().invoke(app, words)
    assert str(ended.exception) == "--best-of: ranks a clip by one prompt, and --section gives it several"
    assert not (tmp_path / "a.wav").exists()

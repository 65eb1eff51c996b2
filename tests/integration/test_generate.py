"""`tmctl generate`: prompts, seeds, files and messages, with the small MusicGen's bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tinymusician.json_types import JsonObject

TMCTL = str(Path(sys.executable).with_name("tmctl"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\ufeffa jig\n\n  a slow reel \n", "utf-8")
    return tmp_path


def generate(folder: Path, bundle: Path, *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [TMCTL, "generate", "--model", str(bundle), *words], cwd=folder, capture_output=True, check=False
    )


def generate_json(folder: Path, bundle: Path, *words: str) -> JsonObject:
    ended = generate(folder, bundle, *words, "--json")
    assert ended.returncode == 0, ended.stderr
    result: JsonObject = json.loads(ended.stdout)
    return result


def test_random_seed_is_reported_and_repeats_the_audio(folder: Path, bundle: Path) -> None:
    (first,) = generate_json(folder, bundle, "a jig", "-o", "first.wav")["clips"]
    (other,) = generate_json(folder, bundle, "a jig", "-o", "other.wav")["clips"]
    assert first["seed"] != other["seed"]
    generate_json(folder, bundle, "a jig", "-o", "again.flac", "--seed", str(first["seed"]))
    first_samples, _ = soundfile.read(folder / "first.wav", dtype="int16")
    again, _ = soundfile.read(folder / "again.flac", dtype="int16")
    np.testing.assert_array_equal(first_samples, again)
    with soundfile.SoundFile(folder / "first.wav") as file:
        assert (file.title, file.comment) == ("a jig", f"seed={first['seed']} model=test")


def test_prompts_and_count_make_numbered_files(folder: Path, bundle: Path) -> None:
    result = generate_json(folder, bundle, "--prompts", "prompts.txt", "--count", "2", "--seed", "5", "-o", "c.ogg")
    clips = [(clip["output"], clip["prompt"], clip["seed"]) for clip in result["clips"]]
    texts = ("a jig", "a jig", "a slow reel", "a slow reel")
    assert clips == [(f"c-{n + 1}.ogg", text, 5 + n) for n, text in enumerate(texts)]
    assert sorted(path.name for path in folder.glob("*.ogg")) == [f"c-{n}.ogg" for n in (1, 2, 3, 4)]


def test_standard_output_is_a_file(folder: Path, bundle: Path) -> None:
    ended = generate(folder, bundle, "a jig", "--seed", "1", "-o", "-")
    assert ended.stdout[:4] == b"RIFF"
    assert b"-: 1 s, seed 1" in ended.stderr
    generate(folder, bundle, "a jig", "--seed", "1", "-o", "a.wav")
    assert ended.stdout == (folder / "a.wav").read_bytes()


def test_unknown_words_are_named(folder: Path, bundle: Path) -> None:
    ended = generate(folder, bundle, "a jig for kazoo and theremin", "-o", "a.wav")
    assert b"warning: not known to this model:" in ended.stderr
    assert b"kazoo" in ended.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a jig", "-o", "a.xyz"), "supported are .wav, .flac, .ogg, .opus"),
        (("a jig", "-o", "old.wav"), "old.wav: exists already; --force replaces it"),
        (("a jig", "-o", "-", "--count", "2"), "standard output holds one clip"),
        (("a jig", "--prompts", "prompts.txt"), "leave the prompt 'a jig' out"),
        (("--prompts", "none.txt"), "--prompts none.txt: cannot be read"),
        (("a jig", "--section", "later:a reel"), "SECOND:PROMPT is needed"),
        (("a jig", "--section", "nan:a reel"), "SECOND:PROMPT is needed"),
        ((b"a jig \xff",), "has bytes that are not UTF-8"),
        (("",), "prompt: is empty"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    folder: Path, bundle: Path, words: tuple[str | bytes, ...], message: str
) -> None:
    (folder / "old.wav").write_bytes(b"old")
    before = sorted(folder.iterdir())
    ended = generate(folder, bundle, *words)
    error = ended.stderr.decode()
    assert ended.returncode == 1
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(folder.iterdir()) == before
    assert (folder / "old.wav").read_bytes() == b"old"

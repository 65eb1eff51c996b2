"""`tmctl` on a terminal: help, recipes, dry runs, errors. Nothing here starts Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.s3_server import free_port

TMCTL = str(Path(sys.executable).with_name("tmctl"))


def tmctl(tmp_path: Path, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMCTL_STORE": (tmp_path / "store").as_uri(), "HF_HUB_OFFLINE": "1", **variables}
    environment.pop("TMCTL_CLUSTER", None)
    return subprocess.run(
        [TMCTL, *words], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def error_of(tmp_path: Path, *words: str, **variables: str) -> str:
    """The single line on standard error of a command that must fail."""
    ended = tmctl(tmp_path, *words, **variables)
    assert ended.returncode == 1, ended.stdout
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert ended.stdout == ""
    return lines[0]


def test_version(tmp_path: Path) -> None:
    assert tmctl(tmp_path, "--version").stdout == f"tmctl {metadata.version('tinymusician')}\n"


@pytest.mark.parametrize("words", [("--debug", "status", "none"), ("status", "none", "--debug")])
def test_debug_before_and_after_the_command(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert "Traceback" in tmctl(tmp_path, *words).stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    for words in (("--help",), ("recipes", "show", "tinymusician")):
        ended = tmctl(tmp_path, *words, PYTHONIOENCODING=encoding)
        assert ended.returncode == 0, ended.stderr
        ended.stdout.encode(encoding)


@pytest.mark.parametrize("words", [(), ("submit",), ("submit", "distill"), ("artifacts",), ("recipes",), ("logs",)])
def test_help_explains(tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = tmctl(tmp_path, *words, "--help")
    assert ended.returncode == 0
    assert "Usage: tmctl" in ended.stdout


def test_help_of_submit_shows_examples(tmp_path: Path) -> None:
    assert (
        "tmctl submit distill band --set objective.skew=0.2"
        in tmctl(tmp_path, "submit", "distill", "--help", COLUMNS="200").stdout
    )


def test_recipes(tmp_path: Path) -> None:
    assert {recipe["name"] for recipe in json.loads(tmctl(tmp_path, "recipes", "--json").stdout)} >= {
        "band",
        "tinymusician",
        "musicgen-tiny",
    }
    shown = json.loads(tmctl(tmp_path, "recipes", "show", "musicgen-tiny", "--json").stdout)
    cost = shown["cost"]
    assert cost["student_decoder_parameters"] == pytest.approx(0.6 * cost["teacher_decoder_parameters"], rel=0.002)
    assert cost["steps"] == shown["training"]["steps"]
    assert cost["memory_per_worker_gib"] > 4 * cost["teacher_decoder_parameters"] / 2**30
    text = tmctl(tmp_path, "recipes", "show", "tinymusician").stdout
    assert "teacher.model = facebook/musicgen-large" in text
    assert "student decoder parameters: 419584000" in text


def test_relative_paths_start_at_the_client(tmp_path: Path) -> None:
    """A job runs in another folder than the one it is sent from, so what a recipe names is made absolute."""
    prompts = Path(__file__).parents[2] / "tinymusician" / "data" / "prompts" / "band.jsonl"
    (tmp_path / "mine.jsonl").write_bytes(prompts.read_bytes())
    words = ("submit", "distill", "band", "--dry-run", "--json", "--set", "sequences.prompts=./mine.jsonl")
    ended = tmctl(tmp_path, *words, cwd=tmp_path)
    assert json.loads(ended.stdout)["sequences"]["prompts"] == str(tmp_path / "mine.jsonl")


def test_pretraining_resources(tmp_path: Path) -> None:
    shown = json.loads(tmctl(tmp_path, "submit", "pretrain", "band", "--dry-run", "--json").stdout)
    assert shown["cost"]["band_large_steps"] == shown["pretrain"]["teacher_steps"]
    assert "student_decoder_parameters" not in shown["cost"]


def test_dry_run_of_quantize_lists_the_measurements(tmp_path: Path) -> None:
    words = ("submit", "quantize", "band", "--model", "band-large", "--dry-run", "--json")
    shown = json.loads(tmctl(tmp_path, *words).stdout)
    assert shown["quantize"]["model"] == "band-large"
    assert shown["cost"]["decoder_megabytes_float32"] == pytest.approx(37.8, abs=0.1)
    assert shown["cost"]["decoder_megabytes_int4"] < 6


def test_dry_run_starts_and_writes_nothing(tmp_path: Path) -> None:
    ended = tmctl(tmp_path, "submit", "distill", "tinymusician", "--dry-run", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["objective"]["name"] == "stage_mixed"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("submit", "distill", "bnad"), "recipe 'bnad': not packaged; allowed are band"),
        (("submit", "distill", "band", "--set", "training.stepz=1"), "training.stepz = 1: no such key"),
        (
            ("submit", "distill", "band", "--set", "objective.skew=1.5"),
            "objective.skew = 1.5: input should be less than 1",
        ),
        (("submit", "distill", "band", "--set", "temperature.final=0"), "temperature.final = 0"),
        (("submit", "distill", "band", "--set", "student.layers=[0,8]"), "the teacher's layers are 0 to 7"),
        (
            ("submit", "distill", "band", "--set", "student.layers=[0,1,2,3,4,5,6,7,7]"),
            "deeper than the teacher, which has 8",
        ),
        (
            ("submit", "distill", "band", "--set", "sequences.prompts=/none.jsonl"),
            "prompts = '/none.jsonl': no such file",
        ),
        (("submit", "distill", "band", "--set", "teacher.model=/none"), "teacher.model = '/none': no such folder"),
        (("submit", "quantize", "band"), "quantize.model: none is given, and"),
        (("submit", "quantize", "band", "--model", "/none"), "quantize.model = '/none': no such folder"),
        (("submit", "quantize", "band", "--model", "nobody"), "model 'nobody': allowed are a folder"),
        (("submit", "quantize", "band", "--set", "quantize.plan=papr"), "plan 'papr': allowed are float32, paper"),
        (("submit", "quantize", "band", "--set", "quantize.method=hqq"), "symmetric must be false"),
        (
            ("submit", "quantize", "band", "--set", "quantize.format=optimum", "--set", "quantize.cache=int8"),
            "format optimum: supports neither cache int8 nor continuation",
        ),
        (("generate", "a reel", "--model", "nobody"), "artifact 'nobody': not in"),
        (("generate", "a reel", "--model", "/none"), "model '/none': no such folder"),
        (("artifacts", "show", "band@sha256:ab"), "6 or more hexadecimal digits"),
        (("submit", "distill", "band", "--name", "A b"), "run name 'A b': allowed are lower-case"),
        (("submit", "distill", "band", "--resume", "none"), "run 'none': not in file://"),
        (
            ("submit", "distill", "band", "--set", "teacher.model=bandd"),
            "model 'bandd': allowed are a folder, a hub id",
        ),
        (("submit", "distill", "band", "--set", "sequences.seconds=25"), "allowed are 0.02 to 20.4 s"),
        (("submit", "distill", "band", "--set", "sequences.seconds=0.001"), "sequences.seconds = 0.001: allowed are"),
        (("submit", "distill", "band", "--set", "training.learning_rate=.inf"), "should be a finite number"),
        (("submit", "distill", "band", "--cluster", "ray://x:1"), "the address of Ray's dashboard is needed"),
        (("submit", "pretrain", "band", "--set", "training.steps=70"), "pretraining reads only pretrain."),
        (("submit", "pretrain", "musicgen-tiny"), "has no `pretrain` section"),
        (("status", "none"), "run 'none': not in file://"),
        (("logs", "none"), "run 'none': not in file://"),
        (("artifacts", "show", "none"), "artifact 'none': not in file://"),
        (("serve", "band-bundle", "--set", "portx=1"), "serve portx: no such setting"),
        (("serve", "band-bundle", "--set", "port.x=1"), "port has no settings of its own"),
        (("serve", "band-small", "--check", "--stop"), "--stop --check: give one of them"),
        (
            ("serve", "band-small", "--check", "--api-keys", "/none"),
            "API keys /none: there is no such file; `tmctl api",
        ),
        (("serve", "none@stable", "--check"), "has no root key yet; give the publisher's"),
        (("recipes", "show", "none"), "recipe 'none': not packaged"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    assert message in error_of(tmp_path, *words)


def test_an_unreachable_cluster(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    error_text = error_of(tmp_path, "submit", "distill", "band", "--cluster", address)
    assert f"cluster {address}: no Ray dashboard answers there; check --cluster" in error_text
    assert not list((tmp_path / "store").rglob("record.json")), "nothing half-written"


def test_an_unusable_store(tmp_path: Path) -> None:
    assert "allowed are file:///" in error_of(tmp_path, "runs", TMCTL_STORE="ftp://x")
    assert "is a file; a folder is needed" in error_of(tmp_path, "runs", TMCTL_STORE=Path(__file__).as_uri())
    error_text = error_of(
        tmp_path,
        "runs",
        TMCTL_STORE="s3://x/y",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
        AWS_DEFAULT_REGION="us-east-1",
    )
    assert "no server responds there; check AWS_ENDPOINT_URL" in error_text


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    ended = tmctl(tmp_path, "--debug", "recipes", "show", "none")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr

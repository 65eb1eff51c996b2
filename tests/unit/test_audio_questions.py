"""`POST /v1/audio/questions` on a real port, with a real bundle: answers, refusals, limits, lost replicas."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import requests
import soundfile

from serve.api_keys import edit_keys, new_key
from tests.endpoint import Endpoint, endpoint, wait_for
from tests.unit.test_answers import COLOURS
from tests.unit.test_question_answerer import QUESTIONS, new_model, wave, write_bundle
from tinymusician.quantize.precision import load_plan
from tinymusician.runtime.best_of import rank
from tinymusician.runtime.bundle import DEFAULT_BUNDLE
from tinymusician.runtime.question_answerer import QuestionAnswerer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    colour, *others = QUESTIONS
    questions = colour.model_copy(update={"in_prompts": True}), *others
    return write_bundle(tmp_path_factory.mktemp("bundle"), new_model(), load_plan("float32"), questions)


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Endpoint]:
    limits = {"upload": 300_000}
    with endpoint(model=DEFAULT_BUNDLE, questions_model=str(bundle), threads=1, limits=limits) as running:
        yield running


def recording(seconds: float = 2.0, rate: int = 22_050, channels: int = 2, kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    mono = np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate), 1))
    soundfile.write(file, np.repeat(mono, channels, 1), rate, format=kind)
    return file.getvalue()


def silence(channels: int, rate: int, seconds: int) -> bytes:
    """A small file that decodes to a large one."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, channels, format="FLAC") as writer:
        for _ in range(seconds):
            writer.write(np.zeros((rate, channels), np.int16))
    return file.getvalue()


def ask(served: Endpoint, content: bytes, name: str = "clip.flac", **fields: Any) -> requests.Response:
    url = f"{served.url}/v1/audio/questions"
    return requests.post(url, files={"file": (name, content)}, data=fields, timeout=60)


def test_answer_is_the_engines(served: Endpoint, bundle: Path) -> None:
    content = io.BytesIO()
    soundfile.write(content, wave(1.0), 16_000, format="WAV", subtype="FLOAT")
    reply = ask(served, content.getvalue(), "clip.wav", question="Which?", options=list(COLOURS))
    assert reply.status_code == 200
    body = reply.json()
    assert (body["model"], body["audio_seconds"], body["windows"], body["truncated"]) == ("tiny-mu", 1.0, 1, False)
    answerer = QuestionAnswerer(bundle, threads=1)
    expected = answerer.ask(answerer.read(wave(1.0)), "Which?", COLOURS)
    (answer,) = body["answers"]
    assert [option["text"] for option in answer["options"]] == list(COLOURS)
    for option, other in zip(answer["options"], expected.options, strict=True):
        assert option["probability"] == pytest.approx(other.probability, abs=1e-4)


def test_without_a_question_all_attributes_are_answered(served: Endpoint) -> None:
    body = ask(served, recording(0.95)).json()
    assert [answer["attribute"] for answer in body["answers"]] == [question.attribute for question in QUESTIONS]
    body = ask(served, recording()).json()
    assert [answer["attribute"] for answer in body["answers"]] == ["colour"]  # a shade is that of a single window
    assert (body["audio_seconds"], body["windows"]) == (2.0, 2)


@pytest.mark.parametrize(
    ("content", "fields", "field", "message"),
    [
        (b"a text", {"question": "Which?"}, "file", "audio: cannot be read as audio"),
        (b"", {}, "file", "audio: cannot be read as audio"),
        (recording(0.2), {}, "file", "lasts 0.2 s; 0.5 to 600 s are allowed"),
        (recording(), {"question": " "}, "question", "question: is empty"),
        (recording(), {"question": ""}, "question", "question: is empty"),
        (recording(), {"question": "Which?", "options": ["r" * 30_000, "b"]}, "options", "at most 60 are allowed"),
        (silence(8, 655_350, 30), {}, "file", "at most 100 million are allowed"),
        (silence(1, 1000, 7200), {}, "file", "lasts 7200 s; 0.5 to 600 s are allowed"),
        (recording(), {"question": "Which?", "options": ["red"]}, "options", "options: 1; 2 to 50 are allowed"),
        (recording(), {"question": "Which?", "options": ["red", "Red"]}, "options", "is there twice"),
        (recording(), {"options": ["red", "blue"]}, "options", "options: need a question"),
    ],
)
def test_unusable_requests_are_refused(
    served: Endpoint, content: bytes, fields: dict[str, Any], field: str, message: str
) -> None:
    reply = ask(served, content, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["field"]) == (422, "invalid", field)
    assert message in error["message"]
    assert "/tmp" not in error["message"]


def test_seven_channels_are_one_clip(served: Endpoint) -> None:
    assert ask(served, recording(1.0, channels=7)).json()["audio_seconds"] == 1.0


def test_upload_that_is_too_large_is_refused(served: Endpoint) -> None:
    reply = ask(served, bytes(400_000))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    assert requests.post(served.address, json={"prompt": "x" * 100_000}, timeout=60).status_code == 413


def test_missing_file_is_named(served: Endpoint) -> None:
    reply = requests.post(f"{served.url}/v1/audio/questions", data={"question": "Which?"}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, "file")


def test_question_goes_to_another_replica_if_one_dies(served: Endpoint) -> None:
    assert served.answers is not None
    served.answers.lose = 2
    assert ask(served, recording()).status_code == 200
    served.answers.lose = 3
    reply = ask(served, recording())
    assert (reply.status_code, reply.json()["error"]["message"]) == (503, "the engine was lost")
    assert reply.headers["Retry-After"] == "5"


def test_music_is_ready_without_what_answers_questions(served: Endpoint) -> None:
    """Its process was lost, and starts again."""
    assert served.answers is not None
    served.answers.lose = 1000
    try:
        wait_for(lambda: requests.get(f"{served.url}/v1/models", timeout=30).json()["questions"] is None, 10)
        assert requests.get(f"{served.url}/ready", timeout=30).status_code == 200
    finally:
        served.answers.lose = 0
    wait_for(lambda: requests.get(f"{served.url}/v1/models", timeout=30).json()["questions"] is not None, 10)


def test_endpoint_without_questions_says_so() -> None:
    with endpoint(model=DEFAULT_BUNDLE, threads=1) as running:
        reply = ask(running, recording())
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    assert "answers no questions" in reply.json()["error"]["message"]


def test_upload_without_a_key_is_refused_before_it_is_received(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    text, key = new_key("me", 60, 4, None)
    with edit_keys(keys, missing=True) as stored:
        stored.append(key)
    with endpoint(model=DEFAULT_BUNDLE, threads=1, api_keys=keys) as running:
        address = urlparse(running.url)
        with socket.create_connection((address.hostname, address.port), 30) as connection:
            connection.sendall(
                b"POST /v1/audio/questions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            )  # and no byte of the body
            assert b"401 Unauthorized" in connection.recv(4096)
        file = {"file": ("clip.flac", recording())}
        url, headers = f"{running.url}/v1/audio/questions", {"Authorization": f"Bearer {text}"}
        assert requests.post(url, files=file, headers=headers, timeout=60).status_code == 404  # answers no questions


def test_best_of_several_clips_is_the_one_that_keeps_the_prompt(served: Endpoint, bundle: Path) -> None:
    """The clips are those of the seeds from the request's on; the scores are those of the engine."""
    body = {"prompt": "a red march", "seconds": 0.6}
    reply = served.generate(**body, seed=5, best_of=3)
    assert reply.status_code == 200, reply.text
    clips = [served.generate(**body, seed=seed).content for seed in (5, 6, 7)]
    waves = [soundfile.read(io.BytesIO(clip), dtype="float32")[0] for clip in clips]
    ranking = rank(QuestionAnswerer(bundle, threads=1), "a red march", waves, 16_000)
    scores = [float(score) for score in reply.headers["X-Adherence"].split(",")]
    assert scores == pytest.approx(ranking.scores, abs=1e-3)
    assert (reply.headers["X-Seed"], reply.content) == (str(5 + ranking.best), clips[ranking.best])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a march"}, "best_of: the prompt names nothing that clips can be ranked by: colour (red"),
        ({"prompt": "a red march", "stream": True}, "best_of: clips are ranked when they are complete"),
        ({"prompt": "a red march", "seconds": 0.2}, "audio: lasts 0.2 s; 0.5 to 600 s are allowed"),
        ({"prompt": "a red march", "best_of": 9}, "best_of: Input should be less than or equal to 8"),
    ],
)
def test_best_of_that_cannot_be_ranked_is_refused(served: Endpoint, fields: dict[str, Any], message: str) -> None:
    reply = served.generate(**{"seconds": 0.6, "best_of": 2, **fields})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid")
    assert reply.json()["error"]["message"].startswith(message)


def test_ranking_is_retried_when_its_replica_is_lost(served: Endpoint) -> None:
    assert served.answers is not None
    served.answers.lose = 2
    assert served.generate(prompt="a red march", seconds=0.6, best_of=2).status_code == 200
    served.answers.lose = 3
    assert served.generate(prompt="a red march", seconds=0.6, best_of=2).status_code == 503
    with endpoint(model=DEFAULT_BUNDLE, threads=1) as silent:
        assert "questions_model is null" in silent.generate(prompt="red", best_of=2).json()["error"]["message"]


def test_bundle_of_questions_is_described_and_served(served: Endpoint, bundle: Path) -> None:
    """Every file has the manifest's digest; the bundle that generates is served as before."""
    listed = requests.get(f"{served.url}/v1/models", timeout=10).json()
    questions, (model,) = listed["questions"], listed["data"]
    assert (questions["id"], questions["attributes"], questions["window_seconds"]) == (
        "tiny-mu",
        ["colour", "shade", "tint"],
        1,
    )
    for about in (questions, model):
        address = f"{served.url}/v1/bundles/{about['digest']}"
        content = requests.get(f"{address}/manifest.json", timeout=10).content
        assert hashlib.sha256(content).hexdigest() == about["digest"]
        for file in json.loads(content)["files"]:
            served_file = requests.get(f"{address}/{file['path']}", timeout=10).content
            assert hashlib.sha256(served_file).hexdigest() == file["sha256"]
    missing = requests.get(f"{served.url}/v1/bundles/{questions['digest']}/config.json", timeout=10)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")

"""The endpoint over HTTP with a real engine, without Ray."""

from __future__ import annotations

import http.client
import io
import json
import socket
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import requests
import soundfile

from serve.api_keys import edit_keys, new_key
from serve.config import read_config
from tests.endpoint import Endpoint, endpoint
from tests.guidance_bundles import guidance_student, write_guidance_bundle
from tests.ray_cluster import wait_for
from tinymusician.errors import BundleError, RequestError
from tinymusician.runtime.generator import GenerationRequest, load_generator

RATE = 800
MARCH = "a happy march"


@pytest.fixture(scope="module")
def here(bundle: Path) -> Iterator[Endpoint]:
    with endpoint(model=str(bundle), threads=1) as result:
        yield result


def samples(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as file:
        assert file.getframerate() == RATE
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


@pytest.mark.parametrize("stream", [False, True])
def test_endpoint_audio_equals_the_engines(here: Endpoint, bundle: Path, stream: bool) -> None:
    answer = here.generate(prompt=MARCH, seconds=2, seed=5, stream=stream)
    expected = load_generator(bundle, 1).generate(GenerationRequest(MARCH, seconds=2, seed=5))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "audio/wav"
    assert answer.headers["X-Seed"] == "5"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert np.abs(samples(answer.content) / 32767 - np.clip(expected, -1, 1)).max() < 1e-3


def test_unknown_words_are_named(here: Endpoint) -> None:
    answer = here.generate(prompt=f"{MARCH} für Kazoo")
    assert [unquote(word) for word in answer.headers["X-Unknown-Words"].split(", ")] == ["für", "Kazoo"]
    assert "X-Unknown-Words" not in here.generate(prompt=MARCH).headers


def test_reported_seed_reproduces_the_audio(here: Endpoint) -> None:
    first = here.generate(prompt=MARCH)
    again = here.generate(prompt=MARCH, seed=int(first.headers["X-Seed"]))
    assert first.content == again.content
    assert first.headers["X-Request-Id"] != again.headers["X-Request-Id"]


@pytest.mark.parametrize(("kind", "media"), [("flac", "audio/flac"), ("opus", "audio/ogg")])
@pytest.mark.parametrize("stream", [False, True])
def test_other_formats_hold_the_same_music(here: Endpoint, kind: str, media: str, stream: bool) -> None:
    answer = here.generate(prompt=MARCH, seconds=2, seed=5, format=kind, stream=stream)
    read, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    assert answer.headers["Content-Type"] == media
    assert abs(len(read) / rate - 2) < 0.05
    if kind == "flac":
        expected = samples(here.generate(prompt=MARCH, seconds=2, seed=5).content) / 32767
        assert np.abs(read - expected).max() < 2e-4


def test_stream_starts_early_and_disconnect_frees_its_rows(here: Endpoint) -> None:
    with here.opened(prompt=MARCH, seconds=60) as answer:
        next(answer.iter_content(100))
        assert here.replica._bundle.loop.num_requests == 1
    wait_for(
        lambda: here.replica._bundle.loop.num_requests == 0 and here.replica._bundle.generator.engine.rows == 0, 10
    )


def test_slow_client_does_not_block_others(here: Endpoint) -> None:
    address = urlparse(here.url)
    body = json.dumps({"prompt": MARCH, "seconds": 60, "stream": True}).encode()
    with socket.create_connection((address.hostname, address.port)) as slow:
        head = f"POST /v1/audio/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert slow.recv(12) == b"HTTP/1.1 200"
        assert here.generate(prompt=MARCH, seconds=1).status_code == 200
        wait_for(lambda: here.replica._bundle.loop.num_requests == 0, 60)  # generated, though no client has read it


def test_model_info_has_digest_and_licence(here: Endpoint, bundle: Path) -> None:
    import hashlib

    (model,) = requests.get(f"{here.url}/v1/models", timeout=10).json()["data"]
    assert model["digest"] == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert (model["licence"], model["sampling_rate"], model["version"]) == ("none", RATE, None)
    assert requests.get(f"{here.url}/live", timeout=10).json() == {"status": "live"}
    ready = requests.get(f"{here.url}/ready", timeout=10)
    assert ready.json() == {"status": "ready"}
    assert ready.headers["X-Bundle"] == model["digest"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": "x" * 1001}, 422, "prompt"),
        ({}, 422, "prompt"),
        ({"prompt": MARCH, "seconds": 61}, 422, "seconds"),
        ({"prompt": MARCH, "seconds": 0}, 422, "seconds"),
        ({"prompt": MARCH, "seconds": "ten"}, 422, "seconds"),
        ({"prompt": MARCH, "seed": -1}, 422, "seed"),
        ({"prompt": MARCH, "seed": 2**60}, 422, "seed"),
        ({"prompt": MARCH, "temperature": 0.001}, 422, "temperature"),
        ({"prompt": MARCH, "top_p": 0}, 422, "top_p"),
        ({"prompt": MARCH, "guidance": 1, "negative_prompt": "noise"}, 422, "negative_prompt"),
        ({"prompt": MARCH, "format": "mp3"}, 422, "format"),
        ({"prompt": MARCH, "volume": 11}, 422, "volume"),
        ([], 422, None),
    ],
)
def test_invalid_value_is_named(here: Endpoint, body: Any, status: int, field: str | None) -> None:
    answer = requests.post(here.address, json=body, timeout=10)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error["field"] == field
    assert error["request_id"] == answer.headers["X-Request-Id"]


def test_guidance_conditioned_bundle(tiny_musicgen: Path, tmp_path: Path) -> None:
    """The model description has the range; requests outside it are rejected."""
    write_guidance_bundle(
        guidance_student(str(tiny_musicgen), 10.0), tiny_musicgen / "tokenizer.json", tmp_path, seconds=1.0
    )
    with endpoint(model=str(tmp_path), threads=1) as conditioned:
        model = requests.get(f"{conditioned.url}/v1/models", timeout=10).json()["data"][0]
        assert (model["one_pass"], model["guidance_range"], model["guidance"]) == (True, [1, 5], 3)
        low, high, usual = (
            conditioned.generate(prompt=MARCH, temperature=0, **options).content
            for options in ({"guidance": 1.5}, {"guidance": 5}, {})
        )
        assert usual == conditioned.generate(prompt=MARCH, temperature=0, guidance=3).content
        assert len({low, high, usual}) == 3
        refused = conditioned.generate(prompt=MARCH, guidance=6)
        assert refused.status_code == 422
        assert "this model was distilled for 1 to 5" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"{", 400),
        (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": "\\ud800"}', 422),
        (b'{"prompt": "a", "seconds": NaN}', 422),
        (b'{"prompt": "a", "seconds": 1e999}', 422),
        ('{"prompt": "ein fröhlicher Marsch"}'.encode("latin-1"), 400),
        (b"[" * 20_000, 400),
        (b" " * 70_000, 413),
    ],
)
def test_invalid_bodies(here: Endpoint, data: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = requests.post(here.address, data=data, headers=headers, timeout=10)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_body_without_content_length(here: Endpoint) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    answer = requests.post(here.address, data=pieces(), headers=headers, timeout=10)
    assert answer.status_code == 413


def test_request_is_retried_after_an_engine_loss(here: Endpoint) -> None:
    expected = here.generate(prompt=MARCH, seconds=3, seed=1)
    here.engines.lose, here.engines.after, before = 2, 1, here.engines.begun
    answer = here.generate(prompt=MARCH, seconds=3, seed=1)
    assert (answer.status_code, here.engines.begun - before) == (200, 3)
    assert answer.content == expected.content
    here.engines.lose, here.engines.after = 2, 1
    assert here.generate(prompt=MARCH, seconds=3, seed=1, stream=True).content == expected.content


def test_permanent_engine_loss_is_reported(here: Endpoint) -> None:
    here.engines.lose, here.engines.after = 3, 0
    answer = here.generate(prompt=MARCH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "failed")
    assert int(answer.headers["Retry-After"]) > 0


def test_started_stream_ends_with_an_error(here: Endpoint) -> None:
    here.engines.lose, here.engines.after = 1, 3
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = here.generate(prompt=MARCH, seconds=5, stream=True).content


def test_openapi_is_complete_and_its_examples_run(here: Endpoint) -> None:
    document = requests.get(f"{here.url}/openapi.json", timeout=10).json()
    operation = document["paths"]["/v1/audio/generations"]["post"]
    assert set(operation["responses"]) == {"200", "400", "401", "408", "413", "422", "429", "500", "503", "504"}
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) == 3
    for example in examples.values():
        assert here.generate(**example["value"]).status_code == 200


def test_default_length_is_limited_too(bundle: Path) -> None:
    with endpoint(model=str(bundle), threads=1, limits={"seconds": 0.5}) as here:
        assert len(samples(here.generate(prompt=MARCH).content)) == RATE // 2
        (model,) = requests.get(f"{here.url}/v1/models", timeout=10).json()["data"]
        assert (model["seconds"], model["max_seconds"]) == (0.5, 0.5)


def test_client_request_id_is_used(here: Endpoint) -> None:
    given = here.generate(prompt=MARCH, headers={"X-Request-Id": "order-66"})
    assert given.headers["X-Request-Id"] == "order-66"
    refused = here.generate(prompt=MARCH, headers={"X-Request-Id": "a b"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "malformed")


def test_internal_error_is_a_response_and_is_counted(
    here: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve.ingress.open_encoder", None)
    answer = here.generate(prompt=MARCH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "failed")
    assert "Content-Security-Policy" in answer.headers
    events: list[dict[str, Any]] = []

    def about_it() -> list[dict[str, Any]]:
        events.extend(json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{"))
        return [line for line in events if line.get("request_id") == answer.headers["X-Request-Id"]]

    wait_for(lambda: any(line["event"] == "response" for line in about_it()), 10)
    assert [line["status"] for line in about_it() if line["event"] == "response"] == ["500"]
    assert any("NoneType" in line["error"] for line in about_it() if line["event"] == "unexpected_error")


def test_files_of_the_bundle_and_nothing_else(here: Endpoint, bundle: Path) -> None:
    (model,) = requests.get(f"{here.url}/v1/models", timeout=10).json()["data"]
    base_url = f"{here.url}/v1/bundles/{model['digest']}"
    for path in ("manifest.json", "decoder.onnx", "tokenizer.json"):
        assert requests.get(f"{base_url}/{path}", timeout=10).content == (bundle / path).read_bytes()
    for address in (f"{base_url}/../secret", f"{base_url}/%2e%2e/x", f"{here.url}/v1/bundles/{'0' * 64}/manifest.json"):
        assert requests.get(address, timeout=10).status_code == 404


def test_parts_of_files(here: Endpoint, bundle: Path) -> None:
    """What a device needs to resume a download: HEAD, one range, and a tag that says that the file is the same."""
    (model,) = requests.get(f"{here.url}/v1/models", timeout=10).json()["data"]
    address, content = (
        f"{here.url}/v1/bundles/{model['digest']}/tokenizer.json",
        (bundle / "tokenizer.json").read_bytes(),
    )
    head = requests.head(address, timeout=10)
    assert (head.status_code, head.content, head.headers["Accept-Ranges"]) == (200, b"", "bytes")
    assert int(head.headers["Content-Length"]) == len(content)
    part = requests.get(address, headers={"Range": "bytes=10-19", "If-Range": head.headers["ETag"]}, timeout=10)
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(content)}"
    whole = requests.get(address, headers={"Range": "bytes=10-19", "If-Range": '"another"'}, timeout=10)
    assert (whole.status_code, whole.content) == (200, content)
    beyond = requests.get(address, headers={"Range": f"bytes={len(content)}-"}, timeout=10)
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(content)}")


def test_pages_of_origins_that_the_operator_lists(bundle: Path) -> None:
    """A browser asks first (CORS), then sends the request; other origins get no such headers."""
    with endpoint(model=str(bundle), allowed_origins=["https://shop.example"]) as here:
        address = f"{here.url}/v1/audio/generations"
        preflight = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        allowed = requests.options(address, headers={"Origin": "https://shop.example", **preflight}, timeout=10)
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert "Authorization" in allowed.headers["Access-Control-Allow-Headers"]
        other = requests.options(address, headers={"Origin": "https://evil.example", **preflight}, timeout=10)
        assert other.status_code == 400
        assert "Access-Control-Allow-Origin" not in other.headers
        headers = {"Origin": "https://shop.example"}
        made = requests.post(address, json={"prompt": MARCH, "seconds": 1}, headers=headers, timeout=60)
        assert made.status_code == 200
        exposed = made.headers["Access-Control-Expose-Headers"]
        assert {"X-Seed", "X-Bundle", "X-Request-Id", "Retry-After"} <= set(exposed.split(", "))
        assert "Access-Control-Allow-Credentials" not in made.headers


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "https://*.example", "*", "HTTPS://A.b"])
def test_what_is_no_origin(bundle: Path, origin: str) -> None:
    with pytest.raises(RequestError, match=r"serve allowed_origins: .*is no origin: SCHEME://HOST"):
        read_config({"model": str(bundle), "allowed_origins": [origin]})


def test_health_checks_may_use_head(here: Endpoint) -> None:
    assert requests.head(f"{here.url}/live", timeout=10).status_code == 200
    assert requests.head(f"{here.url}/ready", timeout=10).status_code == 200


@pytest.mark.parametrize(
    ("path", "kind"), [("generations", "application/json"), ("questions", "multipart/form-data; boundary=x")]
)
def test_a_body_that_does_not_arrive(bundle: Path, path: str, kind: str) -> None:
    """It is given up, and other requests are answered meanwhile."""
    with endpoint(model=str(bundle), limits={"body_timeout_s": 0.5}) as here:
        host, port = here.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 20) as client:
            head = f"POST /v1/audio/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n"
            head += f"Content-Type: {kind}\r\n\r\n"
            client.sendall(head.encode() + b"-")
            assert requests.get(f"{here.url}/live", timeout=10).status_code == 200
            answer = ""
            while "seconds" not in answer:
                answer += client.recv(10_000).decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "has not arrived within 0.5 seconds" in answer


def test_concurrency_limit(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(model=str(bundle), threads=1, limits={"max_concurrent_requests": 2}) as here:
        held = [here.opened(prompt=MARCH, seconds=60) for _ in range(2)]
        answer = here.generate(prompt=MARCH)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")
        assert int(answer.headers["Retry-After"]) >= 1
        events = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
        assert [line["reason"] for line in events if line["event"] == "request_refused"] == ["busy"]
        for one in held:
            one.close()
        wait_for(lambda: here.generate(prompt=MARCH).status_code == 200, 10)


def test_slow_request_times_out(bundle: Path) -> None:
    with endpoint(model=str(bundle), threads=1, limits={"request_timeout_s": 0.05}) as here:
        answer = here.generate(prompt=MARCH, seconds=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        wait_for(lambda: here.replica._bundle.loop.num_requests == 0, 10)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("[::1]:9", 200),
        ("LOCALHOST", 200),
        ("evil.example", 400),
        ("evil.example:80", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example", 400),
        ("localhost@evil.example", 400),
        ("127.0.0.1, evil.example", 400),
        ("192.168.1.7", 400),
        ("", 400),
        ("[::1].evil.example", 400),
        ("evil.example[::1]", 400),
        ("localhost:evil.example", 400),
        ("localhost:80:x", 400),
    ],
)
def test_without_keys_only_this_machines_names_are_served(here: Endpoint, host: str, status: int) -> None:
    """DNS rebinding: the page of another site asks under its own name, whatever address that resolves to."""
    for path in ("/v1/models", "/", "/live", "/openapi.json"):
        answer = requests.get(f"{here.url}{path}", headers={"Host": host}, timeout=10)
        assert answer.status_code == status, (path, answer.text)
    refused = here.generate(prompt=MARCH, headers={"Host": host})
    assert refused.status_code == status
    if status == 400:
        assert refused.json()["error"]["message"].startswith(f"Host {host!r}: without API keys")


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:5173", 200), ("http://localhost:8000", 200), ("https://evil.example", 400), ("null", 400)],
)
def test_pages_of_other_sites_are_refused_without_keys(here: Endpoint, origin: str, status: int) -> None:
    """A form of another site reaches 127.0.0.1 without a preflight; the browser says where it comes from."""
    assert here.generate(prompt=MARCH, headers={"Origin": origin}).status_code == status


@pytest.mark.parametrize(
    ("path", "needed"),
    [("/v1/audio/generations", "application/json"), ("/v1/audio/questions", "multipart/form-data")],
)
def test_a_body_without_content_type_names_the_header(here: Endpoint, path: str, needed: str) -> None:
    answer = requests.post(f"{here.url}{path}", data=b'{"prompt": "a march"}', timeout=10)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["message"], error["field"]) == (f"Content-Type: is missing; {needed} is needed", "Content-Type")


def test_two_hosts_are_refused(here: Endpoint) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(here.url.rpartition(":")[2]), timeout=10)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    for host in ("localhost", "evil.example"):
        connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_keys_open_and_bound(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text, key = new_key("shop", 2, 1, None)
    with edit_keys(path, missing=True) as keys:
        keys.append(key)
    with endpoint(model=str(bundle), threads=1, api_keys=str(path)) as here:
        public = requests.get(f"{here.url}/live", headers={"Host": "music.example"}, timeout=10)
        assert public.status_code == 200
        shut = here.generate(prompt=MARCH)
        assert (shut.status_code, shut.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert requests.get(f"{here.url}/v1/models", timeout=10).status_code == 401
        assert requests.post(f"{here.url}/v1/audio/generations", data="{", timeout=10).status_code == 401, "body unread"
        headers = {"Authorization": f"Bearer {text}"}
        assert [here.generate(prompt=MARCH, headers=headers).status_code for _ in range(3)] == [200, 200, 429]
        with edit_keys(path) as keys:
            keys.clear()
        assert here.generate(prompt=MARCH, headers=headers).status_code == 401


def test_remote_clients_need_keys(bundle: Path) -> None:
    with pytest.raises(RequestError, match="API keys"), endpoint(model=str(bundle), host="0.0.0.0"):
        pass


def test_unreadable_bundle_is_rejected(bundle: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    (broken / "decoder.onnx").write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"decoder\.onnx"), endpoint(model=str(broken)):
        pass

"""Test vectors of the pull protocol, for clients in any language: docs/protocol/vectors.json.

Keys and dates are fixed, so the file is the same whenever it is made: `python -m tests.vectors`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymusician.artifacts import release as releases
from tinymusician.artifacts import trust
from tinymusician.artifacts.envelope import pre_auth_encoding, seal
from tinymusician.artifacts.keys import public_hex
from tinymusician.artifacts.sources import interpret_status

PATH = Path(__file__).parents[1] / "docs" / "protocol" / "vectors.json"
NOW = datetime(2030, 6, 1, tzinfo=UTC)
ROOT, ROOT_2, RELEASE, RELEASE_2, THIEF = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in range(1, 6))
Keys = Sequence[Ed25519PrivateKey]
_ABOUT = {
    "text": 'Ein "Lied"\\\n\t\x01 für Ärzte, 音楽, \U0001f3b5 \u2028',
    "kl": "0.5",
    "Z": [1, True, None, -7],
    "a": {},
}


def root(
    version: int, root_key: Ed25519PrivateKey, release: Ed25519PrivateKey, signers: Keys, days: int = 365
) -> bytes:
    """A root document of the day before."""
    moment = NOW - timedelta(days=1)
    content = {
        "version": version,
        "created": _date(moment),
        "expires": _date(moment + timedelta(days=days)),
        "root": [public_hex(root_key)],
        "release": [public_hex(release)],
    }
    return seal(trust.KIND, content, signers)


def release(signer: Ed25519PrivateKey = RELEASE, **changes: Any) -> bytes:
    """Version 5 of band@stable with two files."""
    content = {
        "name": "band",
        "alias": "stable",
        "version": 5,
        "created": _date(NOW - timedelta(hours=1)),
        "expires": _date(NOW + timedelta(days=90)),
        "artifact": "band@sha256:" + "0" * 64,
        "kind": "bundle",
        "licence": "Apache-2.0",
        "files": [_file("decoder.onnx", b"decoder"), _file("text/encoder.onnx", b"encoder")],
        "about": {},
    }
    return seal(releases.KIND, {**content, **changes}, [signer])


def cases() -> list[dict[str, Any]]:
    """Every case: what a store holds, what is installed, and what a client does."""
    first = root(1, ROOT, RELEASE, [ROOT])
    good = release()
    second = root(2, ROOT_2, RELEASE_2, [ROOT, ROOT_2])
    named = _case
    return [
        named("a first pull", [first], good, "accept"),
        named("an update", [first], good, "accept", installed=(4, "00" * 32)),
        named("nothing new", [first], good, "accept", installed=(5, hashlib.sha256(good).hexdigest())),
        named("older than installed", [first], good, "refuse", installed=(6, "00" * 32)),
        named("equal version, other content", [first], good, "refuse", installed=(5, "00" * 32)),
        named("expired", [first], release(expires=_date(NOW - timedelta(seconds=1))), "refuse"),
        named("another alias in its place", [first], release(alias="candidate"), "refuse"),
        named("another name in its place", [first], release(name="choir"), "refuse"),
        named("signed by a stranger", [first], release(THIEF), "refuse"),
        named("signed by the root key", [first], release(ROOT), "refuse"),
        named("changed after it was signed", [first], _changed(good), "refuse"),
        named("a root document in its place", [first], first, "refuse"),
        named("not canonical", [first], _spaced(), "refuse"),
        named("no JSON", [first], b"no", "refuse"),
        named("a path that leaves its folder", [first], _with_path("../decoder.onnx"), "refuse"),
        named("an absolute path", [first], _with_path("/decoder.onnx"), "refuse"),
        named("a path with a backslash", [first], _with_path("a\\b"), "refuse"),
        named("a hidden file", [first], _with_path(".profile"), "refuse"),
        named("two files that differ in case", [first], _with_files("A.onnx", "a.onnx"), "refuse"),
        named("a file where a folder is", [first], _with_files("text", "text/encoder.onnx"), "refuse"),
        named("an unknown field", [first], release(more=1), "refuse"),
        named("a size below zero", [first], release(files=[{**_file("a", b""), "size": -1}]), "refuse"),
        named("both keys replaced", [first, second], release(RELEASE_2), "accept"),
        named("the old release key after it was replaced", [first, second], good, "refuse"),
        named("a root that the one before did not sign", [first, root(2, ROOT_2, RELEASE_2, [ROOT_2])], good, "refuse"),
        named("a root that its own key did not sign", [first, root(2, ROOT_2, RELEASE_2, [ROOT])], good, "refuse"),
        named("a root with another number", [first, root(3, ROOT, RELEASE_2, [ROOT])], good, "refuse"),
        named("an expired root", [root(1, ROOT, RELEASE, [ROOT], 0)], good, "refuse"),
        named(
            "an expired root, and a newer one",
            [root(1, ROOT, RELEASE, [ROOT], 0), second],
            release(RELEASE_2),
            "accept",
        ),
        named("another root than the device's", [root(1, THIEF, RELEASE, [THIEF])], good, "refuse"),
        named("no root", [], good, "refuse"),
        named(
            "an app of after the root key was replaced", [first, second], release(RELEASE_2), "accept", pinned=ROOT_2
        ),
        named("a key that was never named", [first, second], release(RELEASE_2), "refuse", pinned=THIEF),
        named("about in many letters", [first], release(about=_ABOUT), "accept"),
        named("a number that is not whole", [first], _as_is(about={"kl": 0.5}), "refuse"),
        named("a number that is too large", [first], _as_is(about={"size": 1 << 53}), "refuse"),
        named("a name that is not in ASCII", [first], _as_is(about={"größe": 1}), "refuse"),
    ]


def ranges() -> list[dict[str, Any]]:
    """What an answer's status means for a client that has `start` bytes."""
    requests = [
        (0, 200, None), (400, 200, None), (400, 206, "bytes 400-999/1000"), (400, 206, "bytes 399-999/1000"),
        (400, 206, "bytes 400-998/1000"), (400, 206, None), (400, 206, "bytes 400-999/*"), (400, 416, "bytes */1000"),
        (0, 404, None), (0, 410, None), (400, 403, None), (0, 401, None), (0, 429, None), (0, 500, None),
        (400, 503, None), (0, 400, None),
    ]  # fmt: skip
    return [
        {"start": start, "status": status, "content_range": place, "do": interpret_status(status, place, start)}
        for start, status, place in requests
    ]


def content() -> str:
    """The file."""
    facts = {
        "about": "docs/protocol.md says how to run these. Keys of these vectors are public: trust them nowhere else.",
        "now": _date(NOW),
        "reference": "band@stable",
        "cases": cases(),
        "ranges": ranges(),
    }
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


def _case(
    name: str,
    roots: list[bytes],
    actual: bytes,
    expect: str,
    installed: tuple[int, str] | None = None,
    pinned: Ed25519PrivateKey = ROOT,
) -> dict[str, Any]:
    return {
        "name": name,
        "pinned": public_hex(pinned),
        "roots": [base64.b64encode(one).decode() for one in roots],
        "release": base64.b64encode(actual).decode(),
        "installed": None if installed is None else {"version": installed[0], "digest": installed[1]},
        "expect": expect,
    }


def _file(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _with_path(path: str) -> bytes:
    return release(files=[_file(path, b"x")])


def _with_files(*paths: str) -> bytes:
    return release(files=[_file(path, path.encode()) for path in paths])


def _changed(data: bytes) -> bytes:
    envelope = json.loads(data)
    payload = base64.b64decode(envelope["payload"]).replace(b'"version":5', b'"version":9')
    return json.dumps({**envelope, "payload": base64.b64encode(payload).decode()}).encode()


def _spaced() -> bytes:
    return _signed(json.dumps(json.loads(base64.b64decode(json.loads(release())["payload"]))).encode())


def _as_is(**changes: Any) -> bytes:
    content = json.loads(base64.b64decode(json.loads(release())["payload"])) | changes
    return _signed(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def _signed(payload: bytes) -> bytes:
    """The envelope of a payload that `seal` would not write."""
    envelope = json.loads(release())
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(
        RELEASE.sign(pre_auth_encoding(releases.KIND, payload))
    ).decode()
    return json.dumps(envelope).encode()


def _date(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


if __name__ == "__main__":
    PATH.write_text(content())

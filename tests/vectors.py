"""Test vectors of the pull protocol, for clients in any language: docs/protocol/vectors.json.

Keys and dates are fixed, so the file is the same whenever it is made: `python -m tests.vectors`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymusician.artifacts import release as releases
from tinymusician.artifacts import timestamp as timestamps
from tinymusician.artifacts import trust
from tinymusician.artifacts.envelope import payload_sha256, pre_auth_encoding, seal
from tinymusician.artifacts.keys import PrivateKey, key_id, public_hex, scheme_of, sign
from tinymusician.artifacts.sources import interpret_status

PATH = Path(__file__).parents[1] / "docs" / "protocol" / "vectors.json"
NOW = datetime(2030, 6, 1, tzinfo=UTC)
ROOT, ROOT_2, RELEASE, RELEASE_2, THIEF, ROOT_3, STAMP = (
    Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in range(1, 8)
)
P256 = ec.derive_private_key(int.from_bytes(bytes([9] * 32), "big"), ec.SECP256R1())
Keys = Sequence[PrivateKey]
_ABOUT = {
    "text": 'Ein "Lied"\\\n\t\x01 für Ärzte, 音楽, \U0001f3b5 \u2028',
    "kl": "0.5",
    "Z": [1, True, None, -7],
    "a": {},
}


def root_content(version: int, roles: Mapping[str, tuple[Keys, int]], days: int = 365, **more: Any) -> dict[str, Any]:
    """A root document of the day before: for each role its keys, and how many must sign."""
    moment, keys = NOW - timedelta(days=1), [key for each, _ in roles.values() for key in each]
    publics = [public_hex(key) for key in keys]
    return {
        "spec": 2,
        "version": version,
        "created": _date(moment),
        "expires": _date(moment + timedelta(days=days)),
        "keys": {key_id(public): {"scheme": scheme_of(public), "public": public} for public in publics},
        "roles": {
            role: {"keyids": [key_id(public_hex(key)) for key in each], "threshold": threshold}
            for role, (each, threshold) in roles.items()
        },
        **more,
    }


def root(version: int, root_key: PrivateKey, release: PrivateKey, signers: Keys, days: int = 365, **more: Any) -> bytes:
    """A root document with one key of each role."""
    return seal(
        trust.KIND, root_content(version, {"root": ([root_key], 1), "release": ([release], 1)}, days, **more), signers
    )


def several(signers: Keys, release: Keys = (RELEASE,), threshold: int = 1, version: int = 1) -> bytes:
    """A root document with three root keys, of which two must sign."""
    roles = {"root": ([ROOT, ROOT_2, ROOT_3], 2), "release": (release, threshold)}
    return seal(trust.KIND, root_content(version, roles), signers)


def stamped_root(**changes: Any) -> bytes:
    """A root document with a timestamp key."""
    roles = {"root": ([ROOT], 1), "release": ([RELEASE], 1), "timestamp": ([STAMP], 1)}
    return seal(trust.KIND, root_content(1, roles) | changes, [ROOT])


def release(*signers: PrivateKey, **changes: Any) -> bytes:
    """Version 5 of band@stable with two files."""
    content = {
        "spec": 2,
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
    return seal(releases.KIND, {**content, **changes}, signers or [RELEASE])


def timestamp(signer: PrivateKey = STAMP, of: bytes | None = None, days: float = 7, **changes: Any) -> bytes:
    """A timestamp of the hour before, of that release."""
    content = {
        "spec": 2,
        "name": "band",
        "alias": "stable",
        "version": 5,
        "sha256": payload_sha256(of or release(), "release"),
        "created": _date(NOW - timedelta(hours=1)),
        "expires": _date(NOW + timedelta(days=days)),
    }
    return seal(timestamps.KIND, {**content, **changes}, [signer])


def cases() -> list[dict[str, Any]]:
    """Every case: what a store holds, what is installed, and what a client does."""
    return [*_chains(), *_releases(), *_thresholds(), *_timestamps(), *_recoveries()]


def _releases() -> list[dict[str, Any]]:
    first, good, named = root(1, ROOT, RELEASE, [ROOT]), release(), _case
    here = payload_sha256(good, "release")
    return [
        named("a first pull", [first], good, "accept"),
        named("an update", [first], good, "accept", installed=(4, "00" * 32)),
        named("nothing new", [first], good, "accept", installed=(5, here)),
        named("the same payload in another envelope", [first], _respaced(good), "accept", installed=(5, here)),
        named(
            "the same payload with one more signature", [first], release(RELEASE, THIEF), "accept", installed=(5, here)
        ),
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
        named("a file named like a device", [first], _with_path("text/nul.onnx"), "refuse"),
        named("two files that differ in case", [first], _with_files("A.onnx", "a.onnx"), "refuse"),
        named("a file where a folder is", [first], _with_files("text", "text/encoder.onnx"), "refuse"),
        named("a field of a later version", [first], release(more={"a": [1]}), "accept"),
        named("a later format", [first], release(spec=3), "refuse"),
        named("no format", [first], _without("spec"), "refuse"),
        named("a size below zero", [first], release(files=[{**_file("a", b""), "size": -1}]), "refuse"),
        named("a date in seconds", [first], release(expires=2_000_000_000), "refuse"),
        named("a date in seconds as text", [first], release(expires="2000000000"), "refuse"),
        named("a date without an offset", [first], release(expires="2031-01-01T00:00:00"), "refuse"),
        named("about in many letters", [first], release(about=_ABOUT), "accept"),
        named("a number that is not whole", [first], _as_is(about={"kl": 0.5}), "refuse"),
        named("a number that is too large", [first], _as_is(about={"size": 1 << 53}), "refuse"),
        named("a name that is not in ASCII", [first], _as_is(about={"größe": 1}), "refuse"),
    ]


def _chains() -> list[dict[str, Any]]:
    first, good, named = root(1, ROOT, RELEASE, [ROOT]), release(), _case
    second, newer = root(2, ROOT_2, RELEASE_2, [ROOT, ROOT_2]), release(RELEASE_2)
    expired = root(1, ROOT, RELEASE, [ROOT], 0)
    unknown = root(1, ROOT, RELEASE, [ROOT], scheme="more", later=[{"a": 1}])
    return [
        named("both keys replaced", [first, second], newer, "accept"),
        named("the old release key after it was replaced", [first, second], good, "refuse"),
        named("a root that the one before did not sign", [first, root(2, ROOT_2, RELEASE_2, [ROOT_2])], good, "refuse"),
        named("a root that its own key did not sign", [first, root(2, ROOT_2, RELEASE_2, [ROOT])], good, "refuse"),
        named("a root with another number", [first, root(3, ROOT, RELEASE_2, [ROOT])], good, "refuse"),
        named("an expired root", [expired], good, "refuse"),
        named("an expired root, and a newer one", [expired, second], newer, "accept"),
        named("another root than the device's", [root(1, THIEF, RELEASE, [THIEF])], good, "refuse"),
        named("no root", [], good, "refuse"),
        named("an app of after the root key was replaced", [first, second], newer, "accept", pinned=ROOT_2),
        named("a key that was never named", [first, second], newer, "refuse", pinned=THIEF),
        named("fields of a later version in the root", [unknown], good, "accept"),
        named("a root of a later format", [root(1, ROOT, RELEASE, [ROOT], spec=3)], good, "refuse"),
        named("a root whose key has another id", [_misnamed()], good, "refuse"),
        named("a root whose key has two roles", [root(1, ROOT, ROOT, [ROOT])], release(ROOT), "refuse"),
    ]


def _thresholds() -> list[dict[str, Any]]:
    named, good, both = _case, release(), (RELEASE, RELEASE_2)
    ecdsa = _with_ecdsa()
    return [
        named("two of three root keys", [several([ROOT, ROOT_3])], good, "accept"),
        named("one of three root keys", [several([ROOT])], good, "refuse"),
        named("one root key twice", [several([ROOT, ROOT])], good, "refuse"),
        named("one root key and a stranger", [several([ROOT, THIEF])], good, "refuse"),
        named(
            "a next root by one key of the three",
            [several([ROOT, ROOT_2]), root(2, THIEF, RELEASE, [ROOT, THIEF])],
            good,
            "refuse",
        ),
        named(
            "a next root by two keys of the three",
            [several([ROOT, ROOT_2]), root(2, ROOT, RELEASE, [ROOT, ROOT_3])],
            good,
            "accept",
        ),
        named("two release keys must sign", [several([ROOT, ROOT_2], both, 2)], release(*both), "accept"),
        named("one of two release keys", [several([ROOT, ROOT_2], both, 2)], good, "refuse"),
        named("ECDSA on P-256", [ecdsa[0]], ecdsa[1], "accept"),
        named("ECDSA on P-256, changed", [ecdsa[0]], _changed(ecdsa[1]), "refuse"),
        named("a key of an unknown scheme beside a known one", [_with_unknown_scheme(1)], good, "accept"),
        named("a key of an unknown scheme must sign", [_with_unknown_scheme(2)], good, "refuse"),
        named("more signatures than keys", [_with_threshold(3)], good, "refuse"),
        named("no signature needed", [_with_threshold(0)], good, "refuse"),
    ]


def _timestamps() -> list[dict[str, Any]]:
    first, good, named = stamped_root(), release(), _case
    other = release(about={"other": 1})
    return [
        named("confirmed by a timestamp", [first], good, "accept", stamp=timestamp()),
        named("without its timestamp", [first], good, "refuse"),
        named("an expired timestamp", [first], good, "refuse", stamp=timestamp(days=-0.01)),
        named("a timestamp for longer than 30 days", [first], good, "refuse", stamp=timestamp(days=31)),
        named("a timestamp by the release key", [first], good, "refuse", stamp=timestamp(RELEASE)),
        named("a timestamp of another alias", [first], good, "refuse", stamp=timestamp(alias="candidate")),
        named("a timestamp of another release", [first], good, "refuse", stamp=timestamp(of=other)),
        named("a timestamp of an older version", [first], good, "refuse", stamp=timestamp(version=4)),
        named("a timestamp of a later format", [first], good, "refuse", stamp=timestamp(spec=3)),
        named("a field of a later version in the timestamp", [first], good, "accept", stamp=timestamp(more="a")),
        named("a release by the timestamp key", [first], release(STAMP), "refuse", stamp=timestamp(of=release(STAMP))),
        named("a timestamp that is not needed", [root(1, ROOT, RELEASE, [ROOT])], good, "accept", stamp=b"no"),
    ]


def _recoveries() -> list[dict[str, Any]]:
    """TUF 1.0.33, 5.3.11: after all release keys were replaced, a thief's highest version is forgotten."""
    first, second = root(1, ROOT, RELEASE, [ROOT]), root(2, ROOT, RELEASE_2, [ROOT])
    highest, named = (1 << 52, "00" * 32), _case
    both = several([ROOT, ROOT_2, ROOT], (RELEASE, RELEASE_2))
    return [
        named("the highest version of all, and new keys", [first, second], release(RELEASE_2), "accept", highest),
        named("the highest version of all, and old keys", [first], release(), "refuse", highest),
        named("the highest version of all, and one of its keys", [both], release(RELEASE_2), "refuse", highest),
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
    pinned: PrivateKey = ROOT,
    stamp: bytes | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "pinned": public_hex(pinned),
        "roots": [base64.b64encode(one).decode() for one in roots],
        "release": base64.b64encode(actual).decode(),
        "timestamp": None if stamp is None else base64.b64encode(stamp).decode(),
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


def _respaced(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "more": 1}, indent=1).encode()


def _without(name: str) -> bytes:
    content = json.loads(base64.b64decode(json.loads(release())["payload"]))
    del content[name]
    return seal(releases.KIND, content, [RELEASE])


def _misnamed() -> bytes:
    content = root_content(1, {"root": ([ROOT], 1), "release": ([RELEASE], 1)})
    content["keys"][key_id(public_hex(RELEASE))]["public"] = public_hex(RELEASE_2)
    return seal(trust.KIND, content, [ROOT])


def _with_threshold(threshold: int) -> bytes:
    content = root_content(1, {"root": ([ROOT], 1), "release": ([RELEASE, RELEASE_2], threshold)})
    return seal(trust.KIND, content, [ROOT])


def _with_unknown_scheme(threshold: int) -> bytes:
    """A second release key, of a scheme that no client knows yet."""
    content = root_content(1, {"root": ([ROOT], 1), "release": ([RELEASE], threshold)})
    public = "ab" * 1000
    content["keys"][key_id(public)] = {"scheme": "ml-dsa-65", "public": public}
    content["roles"]["release"]["keyids"].append(key_id(public))
    return seal(trust.KIND, content, [ROOT])


def _with_ecdsa() -> tuple[bytes, bytes]:
    """A root document and a release with a release key on P-256. Its signatures differ every time, so one is stored."""
    first, drawn = root(1, ROOT, P256, [ROOT]), release(P256)
    stored = next((one for one in _stored_cases() if one["name"] == "ECDSA on P-256"), None)
    if stored is not None:
        before = base64.b64decode(stored["release"])
        if payload_sha256(before, "release") == payload_sha256(drawn, "release"):
            return first, before
    return first, drawn


def _stored_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(PATH.read_text())["cases"] if PATH.exists() else []
    return cases


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
        sign(RELEASE, pre_auth_encoding(releases.KIND, payload))
    ).decode()
    return json.dumps(envelope).encode()


def _date(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


if __name__ == "__main__":
    PATH.write_text(content())

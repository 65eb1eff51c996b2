"""Ten thousand mutated releases: each is rejected with a reason, or has the same meaning."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymusician.artifacts.envelope import pre_auth_encoding, seal
from tinymusician.artifacts.keys import key_id, public_hex
from tinymusician.artifacts.release import KIND, Release, read_release
from tinymusician.artifacts.trust import RootMetadata, Signers, next_root, only, read_root, sign_root
from tinymusician.errors import UntrustedError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRUSTED = Signers(keys={key_id(public_hex(KEY)): public_hex(KEY)})
MOMENT = datetime(2030, 1, 1, tzinfo=UTC).isoformat().replace("+00:00", "Z")
CONTENT: dict[str, Any] = {
    "spec": 2, "name": "band", "alias": "stable", "version": 7, "created": MOMENT, "expires": MOMENT,
    "artifact": "band@sha256:00", "kind": "bundle", "licence": "Apache-2.0", "about": {"metrics": {"kl": "0.5"}},
    "files": [{"path": f"graphs/{n}.onnx", "size": n, "sha256": f"{n:064x}"} for n in range(3)],
}  # fmt: skip
GOOD = seal(KIND, CONTENT, [KEY])
EXPECTED = read_release(GOOD, "band@stable", TRUSTED)
FIELDS = [(name,) for name in CONTENT] + [("files", n, key) for n in range(3) for key in ("path", "size", "sha256")]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 1 << 70), st.floats(allow_nan=False, allow_infinity=False), st.text(),
    st.sampled_from(["../x", "/etc/passwd", "a/../../b", "C:\\x", "candidate", "a" * 5000, "\u0000", "..", MOMENT]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
EDITS = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.sampled_from("xdi"), st.integers(1, 255)), min_size=1, max_size=6
)
MANY = settings(max_examples=5000, deadline=None, derandomize=True, database=None)


def outcome(data: bytes) -> Release | None:
    """The release; None if it is refused. Any other error fails the test."""
    try:
        return read_release(data, "band@stable", TRUSTED)
    except UntrustedError:
        return None


@MANY
@given(EDITS)
def test_changed_bytes(edits: list[tuple[int, str, int]]) -> None:
    assert outcome(edited(GOOD, edits)) in (None, EXPECTED)


def edited(good: bytes, edits: list[tuple[int, str, int]]) -> bytes:
    """Bytes that were changed, taken out or put in."""
    data = bytearray(good)
    for place, kind, value in edits:
        place = min(place, len(data) - 1)
        if kind == "x":
            data[place] ^= value
        elif kind == "d":
            del data[place : place + 1 + value]
        else:
            data[place:place] = bytes([value])
        if not data:
            break
    return bytes(data)


def written(content: Any) -> bytes:
    """JSON in the canonical form, of whatever it is."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def signed_as_is(payload: bytes) -> bytes:
    """An envelope around anything, signed with the trusted key."""
    signature = base64.b64encode(KEY.sign(pre_auth_encoding(KIND, payload))).decode()
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": KIND}
    return json.dumps({**envelope, "signatures": [{"keyid": next(iter(TRUSTED.keys)), "sig": signature}]}).encode()


def changed(field: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(CONTENT))
    place: Any = content
    for key in field[:-1]:
        place = place[key]
    place[field[-1]] = value
    return content


@MANY
@given(st.sampled_from(FIELDS), VALUES)
def test_changed_fields(field: tuple[Any, ...], value: Any) -> None:
    """Without the key nothing of it counts; with it, only what is a release, and stays in its folder."""
    content = changed(field, value)
    envelope = json.loads(GOOD)
    envelope["payload"] = base64.b64encode(written(content)).decode()
    unsigned = outcome(json.dumps(envelope).encode())
    assert unsigned in (None, EXPECTED)
    assert unsigned is None or content == CONTENT
    signed = outcome(signed_as_is(written(content)))
    if signed is not None:
        assert signed.reference == "band@stable"
        for file in signed.files:
            assert not file.path.startswith("/")
            assert ".." not in file.path.split("/")
            assert "\\" not in file.path
            assert file.size >= 0


@pytest.mark.parametrize("name", ["payload", "payloadType", "signatures"])
def test_duplicate_key(name: str) -> None:
    """JSON that says one thing twice means different things to different readers."""
    content = json.loads(GOOD)
    text = GOOD.decode()
    assert outcome(text.replace("{", f'{{"{name}":{json.dumps(content[name])},', 1).encode()) in (None, EXPECTED)
    twice = written(CONTENT).replace(b'"version":7', b'"version":1,"version":7')
    with pytest.raises(UntrustedError, match="not canonical"):
        read_release(signed_as_is(twice), "band@stable", TRUSTED)


@pytest.mark.parametrize(
    ("value", "why"), [(0.5, "is not an integer"), (2**53, "too large"), ({"ä": 1}, "not in ASCII")]
)
def test_values_that_languages_serialize_differently(value: Any, why: str) -> None:
    with pytest.raises(UntrustedError, match=f"not canonical JSON .*{why}"):
        read_release(signed_as_is(written(changed(("about",), {"x": value}))), "band@stable", TRUSTED)


ROOT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ROOT = next_root(None, {"root": only(ROOT_KEY), "release": only(KEY)}, datetime(2030, 1, 1, tzinfo=UTC))
ROOT_DATA = sign_root(ROOT, [ROOT_KEY])


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(EDITS)
def test_changed_roots(edits: list[tuple[int, str, int]]) -> None:
    def outcome(data: bytes) -> RootMetadata | None:
        try:
            return read_root(data, 1, ROOT.signers("root"))
        except UntrustedError:
            return None

    assert outcome(ROOT_DATA) == ROOT
    assert outcome(edited(ROOT_DATA, edits)) in (None, ROOT)

"""Signed documents: canonical JSON in a DSSE envelope, signed with Ed25519 or ECDSA.

The signature covers DSSE's pre-authentication encoding, which binds the document type to its bytes: a signed release
cannot be taken for a signed root. A document is parsed only after the signature of a trusted key was verified.
Source: DSSE 1.0 (secure-systems-lab/dsse, protocol.md); the signatures are those of `keys`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinymusician.artifacts.keys import PrivateKey, is_signature, key_id, public_hex, sign
from tinymusician.errors import UntrustedError
from tinymusician.json_types import JsonObject

MAX_BYTES = 1 << 20
"""The maximum size of a document."""
MAX_NUMBER = (1 << 53) - 1
"""The largest integer that every language reads exactly."""


class Signature(BaseModel):
    """The signature of one key; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    keyid: str = Field(max_length=64)
    sig: str = Field(max_length=256)


class Envelope(BaseModel):
    """DSSE's JSON envelope; unknown fields are ignored, as DSSE requires."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    payload: str
    kind: str = Field(max_length=128, alias="payloadType")
    signatures: tuple[Signature, ...] = Field(min_length=1, max_length=16)


def canonical(content: object) -> bytes:
    """Canonical JSON (RFC 8785), restricted to integers and ASCII names.

    Raises:
        ValueError: the content has another number or name.
    """
    _check_plain(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def textual(content: object) -> object:
    """The content with floats and large integers as strings, and non-finite numbers as null."""
    if isinstance(content, float):
        return repr(content) if math.isfinite(content) else None
    if isinstance(content, int) and abs(content) > MAX_NUMBER:
        return str(content)
    if isinstance(content, Mapping):
        return {str(name): textual(value) for name, value in content.items()}
    return [textual(value) for value in content] if isinstance(content, list | tuple) else content


def textual_object(content: Mapping[str, object]) -> JsonObject:
    """`textual` of an object."""
    return {str(name): textual(value) for name, value in content.items()}


def pre_auth_encoding(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (PAE), over which signatures are made."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def seal(kind: str, content: object, keys: Sequence[PrivateKey]) -> bytes:
    """An envelope with a document of a media type (`kind`) in canonical JSON, signed by every key."""
    return seal_bytes(kind, canonical(content), keys)


def seal_bytes(kind: str, payload: bytes, keys: Sequence[PrivateKey]) -> bytes:
    """An envelope with any bytes of a media type (`kind`), signed by every key."""
    signed = [
        {
            "keyid": key_id(public_hex(key)),
            "sig": base64.b64encode(sign(key, pre_auth_encoding(kind, payload))).decode(),
        }
        for key in keys
    ]
    return canonical({"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": signed})


def unseal(data: bytes, kind: str, trusted: Mapping[str, str], name: str, threshold: int = 1) -> JsonObject:
    """The content of an envelope that is signed by `threshold` of the `trusted` public keys (hex, by key id).

    Raises:
        UntrustedError: the envelope is too large, malformed or of another kind, too few trusted keys signed it, or its
            content is not canonical.
    """
    payload = unseal_bytes(data, kind, trusted, name, threshold)
    try:
        content = json.loads(payload)
        if not isinstance(content, dict) or canonical(content) != payload:
            raise ValueError("not canonical")
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{name}: is signed, but not canonical JSON ({error})") from None
    return content


def unseal_bytes(data: bytes, kind: str, trusted: Mapping[str, str], name: str, threshold: int = 1) -> bytes:
    """The bytes in an envelope that is signed by `threshold` of the `trusted` public keys (hex, by key id).

    Raises:
        UntrustedError: the envelope is too large, malformed or of another kind, or too few trusted keys signed it.
    """
    envelope, payload = _parse(data, name)
    if envelope.kind != kind:
        raise UntrustedError(f"{name}: is a {envelope.kind}; a {kind} is needed")
    named = [one for one in envelope.signatures if one.keyid in trusted]
    if not named:
        ids = ", ".join(one.keyid[:12] for one in envelope.signatures)
        raise UntrustedError(
            f"{name}: signed by {ids}, and trusted are {', '.join(one[:12] for one in trusted) or 'none'}"
        )
    signers = _signers(envelope, payload, trusted)
    if not signers:
        raise UntrustedError(f"{name}: its signature is invalid; it was changed after signing")
    if len(signers) < threshold:
        ids = ", ".join(sorted(one[:12] for one in signers))
        raise UntrustedError(f"{name}: signed by {ids}, and {threshold} trusted keys must sign it")
    return payload


def signers_of(data: bytes, trusted: Mapping[str, str], name: str) -> frozenset[str]:
    """The ids of the trusted keys that signed an envelope."""
    envelope, payload = _parse(data, name)
    return _signers(envelope, payload, trusted)


def payload_sha256(data: bytes, name: str) -> str:
    """The SHA-256 of an envelope's payload: another signature or another form of the envelope does not change it.

    Raises:
        UntrustedError: it is no envelope.
    """
    return hashlib.sha256(_parse(data, name)[1]).hexdigest()


def parse_unverified(data: bytes, name: str) -> Any:
    """The content of an envelope without verification: only to learn which key must have signed it.

    Raises:
        UntrustedError: it is not an envelope with JSON content.
    """
    try:
        return json.loads(_parse(data, name)[1])
    except (ValueError, RecursionError):
        raise UntrustedError(f"{name}: is not a signed document (JSON)") from None


def _parse(data: bytes, name: str) -> tuple[Envelope, bytes]:
    if len(data) > MAX_BYTES:
        raise UntrustedError(f"{name}: is larger than {MAX_BYTES} bytes; the maximum")
    try:
        envelope = Envelope.model_validate_json(data)
        return envelope, base64.b64decode(envelope.payload, validate=True)
    except (ValidationError, binascii.Error, ValueError):
        raise UntrustedError(f"{name}: is not a signed document (DSSE envelope)") from None


def _check_plain(content: object) -> None:
    if isinstance(content, dict):
        for name, value in content.items():
            if not name.isascii():
                raise ValueError(f"the name {name!r} is not in ASCII")
            _check_plain(value)
    elif isinstance(content, list):
        for value in content:
            _check_plain(value)
    elif isinstance(content, float) or (isinstance(content, int) and abs(content) > MAX_NUMBER):
        raise ValueError(f"the number {content} is not an integer, or too large")


def _signers(envelope: Envelope, payload: bytes, trusted: Mapping[str, str]) -> frozenset[str]:
    message = pre_auth_encoding(envelope.kind, payload)
    return frozenset(
        one.keyid
        for one in envelope.signatures
        if one.keyid in trusted and is_signature(trusted[one.keyid], _decoded(one.sig), message)
    )


def _decoded(signature: str) -> bytes:
    """The bytes of a signature; none if it is not base64."""
    try:
        return base64.b64decode(signature, validate=True)
    except ValueError:
        return b""

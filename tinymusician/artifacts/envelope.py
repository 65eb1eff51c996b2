"""Signed documents: canonical JSON in a DSSE envelope, signed with Ed25519.

The signature covers DSSE's pre-authentication encoding, which binds the document type to its bytes: a signed release
cannot be taken for a signed root. A document is parsed only after the signature of a trusted key was verified.
Source: DSSE 1.0 (secure-systems-lab/dsse, protocol.md); Ed25519 by `cryptography` (RFC 8032).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinymusician.artifacts.keys import key_id, public_hex
from tinymusician.errors import UntrustedError
from tinymusician.json_types import JsonObject

MAX_BYTES = 1 << 20
"""The maximum size of a document."""
MAX_NUMBER = (1 << 53) - 1
"""The largest integer that every language reads exactly."""


class Signature(BaseModel):
    """The signature of one key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keyid: str = Field(max_length=64)
    sig: str = Field(max_length=128)


class Envelope(BaseModel):
    """DSSE's JSON envelope."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    payload: str
    kind: str = Field(max_length=128, alias="payloadType")
    signatures: tuple[Signature, ...] = Field(min_length=1, max_length=8)


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


def seal(kind: str, content: object, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """An envelope with a document of a media type (`kind`) in canonical JSON, signed by every key."""
    return seal_bytes(kind, canonical(content), keys)


def seal_bytes(kind: str, payload: bytes, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """An envelope with any bytes of a media type (`kind`), signed by every key."""
    signed = [
        {"keyid": key_id(public_hex(key)), "sig": base64.b64encode(key.sign(pre_auth_encoding(kind, payload))).decode()}
        for key in keys
    ]
    return canonical({"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": signed})


def unseal(data: bytes, kind: str, trusted: Mapping[str, str], name: str) -> JsonObject:
    """The content of an envelope that is signed by one of the `trusted` public keys (hex, by key id).

    Raises:
        UntrustedError: the envelope is too large, malformed or of another kind, no trusted key signed it, or its
            content is not canonical.
    """
    payload = unseal_bytes(data, kind, trusted, name)
    try:
        content = json.loads(payload)
        if not isinstance(content, dict) or canonical(content) != payload:
            raise ValueError("not canonical")
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{name}: is signed, but not canonical JSON ({error})") from None
    return content


def unseal_bytes(data: bytes, kind: str, trusted: Mapping[str, str], name: str) -> bytes:
    """The bytes in an envelope that is signed by one of the `trusted` public keys (hex, by key id).

    Raises:
        UntrustedError: the envelope is too large, malformed or of another kind, or no trusted key signed it.
    """
    envelope, payload = _parse(data, name)
    if envelope.kind != kind:
        raise UntrustedError(f"{name}: is a {envelope.kind}; a {kind} is needed")
    signatures = [one for one in envelope.signatures if one.keyid in trusted]
    if not signatures:
        ids = ", ".join(one.keyid[:12] for one in envelope.signatures)
        raise UntrustedError(
            f"{name}: signed by {ids}, and trusted are {', '.join(one[:12] for one in trusted) or 'none'}"
        )
    if not any(_is_signature(trusted[one.keyid], one.sig, pre_auth_encoding(kind, payload)) for one in signatures):
        raise UntrustedError(f"{name}: its signature is invalid; it was changed after signing")
    return payload


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


def _is_signature(public: str, signature: str, message: bytes) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, ValueError):
        return False
    return True

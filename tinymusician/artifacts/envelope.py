"""Signed documents: canonical JSON in a DSSE envelope, signed with Ed25519.

What is signed is the envelope's pre-authentication encoding, which binds the document's kind to its bytes: a signed
alias cannot be taken for a signed root. Nothing of a document is read before a trusted key was found to have signed it.
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

LARGEST = 1 << 20
"""Bytes of the largest document that is looked at."""
LARGEST_NUMBER = (1 << 53) - 1
"""Every language reads so much exactly."""


class Signature(BaseModel):
    """One key's signature."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keyid: str = Field(max_length=64)
    sig: str = Field(max_length=128)


class Envelope(BaseModel):
    """DSSE's JSON envelope."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    payload: str
    kind: str = Field(max_length=128, alias="payloadType")
    signatures: tuple[Signature, ...] = Field(min_length=1, max_length=8)


def canonical(content: Any) -> bytes:
    """The one way in which a document is written: RFC 8785's, of documents with whole numbers and names in ASCII alone.

    Raises:
        ValueError: it has another number, or another name.
    """
    _check_plain(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def textual(content: Any) -> Any:
    """The same with numbers as text that are not whole or too large, and without those that are none."""
    if isinstance(content, float):
        return repr(content) if math.isfinite(content) else None
    if isinstance(content, int) and abs(content) > LARGEST_NUMBER:
        return str(content)
    if isinstance(content, Mapping):
        return {str(name): textual(value) for name, value in content.items()}
    return [textual(value) for value in content] if isinstance(content, list | tuple) else content


def encoded(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which is what gets signed."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def seal(kind: str, content: Any, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """A document of a kind (a media type) in its envelope, signed by every key."""
    payload = canonical(content)
    signed = [
        {"keyid": key_id(public_hex(key)), "sig": base64.b64encode(key.sign(encoded(kind, payload))).decode()}
        for key in keys
    ]
    return canonical({"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": signed})


def unseal(data: bytes, kind: str, trusted: Mapping[str, str], name: str) -> dict[str, Any]:
    """The content of an envelope that one of the `trusted` keys (public halves in hex, by key id) has signed.

    Raises:
        Refused: too large, no such envelope, of another kind, not signed by a trusted key, or not canonical.
    """
    envelope, payload = _parsed(data, name)
    if envelope.kind != kind:
        raise UntrustedError(f"{name}: is a {envelope.kind}; a {kind} is needed")
    signatures = [one for one in envelope.signatures if one.keyid in trusted]
    if not signatures:
        ids = ", ".join(one.keyid[:12] for one in envelope.signatures)
        raise UntrustedError(
            f"{name}: signed by {ids}, and trusted are {', '.join(one[:12] for one in trusted) or 'none'}"
        )
    if not any(_signed(trusted[one.keyid], one.sig, encoded(kind, payload)) for one in signatures):
        raise UntrustedError(f"{name}: its signature is wrong; it was changed after it was signed")
    try:
        content = json.loads(payload)
        if not isinstance(content, dict) or canonical(content) != payload:
            raise ValueError("not canonical")
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{name}: is signed, but not canonical JSON ({error})") from None
    return content


def claimed(data: bytes, name: str) -> Any:
    """What an envelope says, unchecked: only to learn whose signature must be asked for.

    Raises:
        Refused: it is no envelope around JSON.
    """
    try:
        return json.loads(_parsed(data, name)[1])
    except (ValueError, RecursionError):
        raise UntrustedError(f"{name}: is no signed document (JSON)") from None


def _parsed(data: bytes, name: str) -> tuple[Envelope, bytes]:
    if len(data) > LARGEST:
        raise UntrustedError(f"{name}: is larger than {LARGEST} bytes; at most as many are allowed")
    try:
        envelope = Envelope.model_validate_json(data)
        return envelope, base64.b64decode(envelope.payload, validate=True)
    except (ValidationError, binascii.Error, ValueError):
        raise UntrustedError(f"{name}: is no signed document (DSSE envelope)") from None


def _check_plain(content: Any) -> None:
    if isinstance(content, dict):
        for name, value in content.items():
            if not name.isascii():
                raise ValueError(f"the name {name!r} is not in ASCII")
            _check_plain(value)
    elif isinstance(content, list):
        for value in content:
            _check_plain(value)
    elif isinstance(content, float) or (isinstance(content, int) and abs(content) > LARGEST_NUMBER):
        raise ValueError(f"the number {content} is not whole, or too large")


def _signed(public: str, signature: str, message: bytes) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, ValueError):
        return False
    return True

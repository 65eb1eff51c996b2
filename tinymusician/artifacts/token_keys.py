"""Private keys in hardware or a key service, through PKCS#11 (OASIS): smart cards, HSMs, SoftHSM.

A key is named by a PKCS#11 URI (RFC 7512) with the path of the token's module:

    pkcs11:token=band;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so

It is a key pair of ECDSA on P-256, both halves in the token. The private half never leaves it. The optional package
python-pkcs11 loads the module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tinymusician.artifacts.secret_input import PIN_VARIABLE, read_secret, read_secret_file
from tinymusician.errors import KeyFileError

if TYPE_CHECKING:
    from pkcs11 import ObjectClass
    from pkcs11.types import Key, Session

_IN_TOKEN, _IN_QUERY = ("token", "object", "id"), ("module-path", "pin-source")
_POINT = 65
"""The bytes of an uncompressed point of P-256."""


class TokenAbsentError(KeyFileError):
    """A token, its module or its key is not there; another of several keys may be."""


@dataclass(frozen=True)
class TokenKey:
    """A private key in a token: its URI and its public half, an uncompressed point in hexadecimal digits."""

    uri: str
    public: str

    def sign(self, message: bytes) -> bytes:
        """The signature, DER of ECDSA over SHA-256.

        Raises:
            KeyFileError: the token is not there, or refuses.
        """
        with _session(self.uri) as session:
            from pkcs11 import Mechanism, ObjectClass
            from pkcs11.types import SignMixin

            key = _key(session, ObjectClass.PRIVATE_KEY, self.uri)
            if not isinstance(key, SignMixin):
                raise KeyFileError(f"{self.uri}: the token does not let this key sign")
            raw = bytes(key.sign(hashlib.sha256(message).digest(), mechanism=Mechanism.ECDSA))
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))


def open_token_key(uri: str) -> TokenKey:
    """The key that a URI names.

    Raises:
        KeyFileError: the URI is incomplete, the token or key is not there, or it is of another kind.
    """
    with _session(uri) as session:
        from pkcs11 import Attribute, ObjectClass

        point = bytes(_key(session, ObjectClass.PUBLIC_KEY, uri)[Attribute.EC_POINT])
    # The attribute is DER of an octet string (PKCS#11 3.1, 6.3.3); some tokens give the point alone.
    point = point[2:] if len(point) == _POINT + 2 else point
    if len(point) != _POINT or point[0] != 4:
        raise KeyFileError(f"{uri}: is no key of ECDSA on P-256")
    return TokenKey(uri, point.hex())


@contextmanager
def _session(uri: str) -> Iterator[Session]:
    """A session with the token."""
    named = _parse(uri)
    try:
        import pkcs11
    except ImportError as error:
        raise KeyFileError(f"{uri}: needs the package python-pkcs11; pip install 'tinymusician[hsm]'") from error
    pin = _pin(named)
    try:
        token = pkcs11.lib(named["module-path"]).get_token(token_label=named["token"])
        with token.open(user_pin=pin) as session:
            yield session
    except pkcs11.exceptions.PinIncorrect as error:
        raise KeyFileError(f"{uri}: the PIN is wrong; tokens lock themselves after a few wrong ones") from error
    except pkcs11.exceptions.PKCS11Error as error:
        reason = str(error) or type(error).__name__
        raise TokenAbsentError(f"{uri}: cannot be used ({reason})") from error


def _key(session: Session, kind: ObjectClass, uri: str) -> Key:
    from pkcs11 import KeyType

    named = _parse(uri)
    number = bytes.fromhex(named["id"]) if "id" in named else None
    return session.get_key(object_class=kind, key_type=KeyType.EC, label=named.get("object"), id=number)


def _pin(named: Mapping[str, str]) -> str:
    if source := named.get("pin-source"):
        return read_secret_file(Path(source.removeprefix("file:"))).decode()
    return read_secret(f"PIN of the token {named['token']}", PIN_VARIABLE).decode()


def _parse(uri: str) -> dict[str, str]:
    """The attributes of a URI; `id` in hexadecimal digits, the others as text."""
    scheme, _, rest = uri.partition(":")
    path, _, query = rest.partition("?")
    named: dict[str, str] = {}
    for part, allowed, separator in ((path, _IN_TOKEN, ";"), (query, _IN_QUERY, "&")):
        for word in filter(None, part.split(separator)):
            name, _, value = word.partition("=")
            if name not in allowed:
                raise KeyFileError(f"{uri}: {name!r}: allowed are {', '.join((*_IN_TOKEN, *_IN_QUERY))}")
            named[name] = _bytes_of(value).hex() if name == "id" else unquote(value)
    if scheme != "pkcs11" or not {"token", "module-path"} <= set(named) or not {"object", "id"} & set(named):
        raise KeyFileError(f"{uri}: the form is pkcs11:token=LABEL;object=LABEL?module-path=FILE (RFC 7512)")
    return named


def _bytes_of(value: str) -> bytes:
    return unquote(value, "latin-1").encode("latin-1")

"""A passphrase or PIN: from the file that a variable names, or from the terminal."""

from __future__ import annotations

import functools
import getpass
import os
import sys
from pathlib import Path

from tinymusician.errors import KeyFileError

PASSPHRASE_VARIABLE, PIN_VARIABLE = "TMCTL_KEY_PASSPHRASE_FILE", "TMCTL_PKCS11_PIN_FILE"


def read_secret(what: str, variable: str) -> bytes:
    """The secret `what`, without the end of its line.

    Raises:
        KeyFileError: the file that `variable` names cannot be read, or there is neither a file nor a terminal.
    """
    if file := os.environ.get(variable):
        return read_secret_file(Path(file))
    if not sys.stdin.isatty():
        raise KeyFileError(f"{what}: is needed; {variable} names a file that contains it")
    return _typed(what)


def new_passphrase() -> bytes:
    """The passphrase of new private keys; on a terminal it is typed twice.

    Raises:
        KeyFileError: as `read_secret`; or it is empty, or was typed differently.
    """
    passphrase = read_secret("passphrase of the private keys", PASSPHRASE_VARIABLE)
    if not passphrase:
        raise KeyFileError("passphrase: is empty")
    is_typed = not os.environ.get(PASSPHRASE_VARIABLE)
    if is_typed and getpass.getpass("the same passphrase again: ").encode() != passphrase:
        _typed.cache_clear()
        raise KeyFileError("passphrase: was typed differently the second time")
    return passphrase


def read_secret_file(path: Path) -> bytes:
    """The first line of a file.

    Raises:
        KeyFileError: it cannot be read.
    """
    try:
        return path.expanduser().read_bytes().split(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror})") from error


@functools.cache
def _typed(what: str) -> bytes:
    """What was typed; once for all keys of a command."""
    return getpass.getpass(f"{what}: ").encode()

"""References to releases: NAME@ALIAS."""

from __future__ import annotations

import re

from tinymusician.errors import StoreError

ROOT_KEY_VARIABLE = "TMCTL_ROOT_KEY"
"""The environment variable with the publisher's public root key, which those who follow an alias trust."""
_REFERENCE = re.compile(r"([a-z0-9][a-z0-9-]{0,63})@([a-z0-9][a-z0-9-]{0,63})")


def split_reference(reference: str) -> tuple[str, str]:
    """Name and alias of NAME@ALIAS.

    Raises:
        StoreError: it has another form.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None or match[2] == "sha256":
        raise StoreError(f"release {reference!r}: the form is NAME@ALIAS, such as band@stable")
    return match[1], match[2]


def is_alias(reference: str) -> bool:
    """Whether a reference is NAME@ALIAS: not the name of an artifact, nor one with its digest."""
    return "@" in reference and "@sha256:" not in reference

"""Names of files that every system accepts."""

from __future__ import annotations

import re

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[\d¹²³]|lpt[\d¹²³])(\..*)?")
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')


def is_portable(name: str) -> bool:
    """Whether a name, without folders, can be a file's on Windows too: no device's, and no dot or space at its end.

    Source: Microsoft, "Naming Files, Paths, and Namespaces".
    """
    return not (_RESERVED.fullmatch(name) or _FORBIDDEN.search(name) or name.endswith((".", " ")))

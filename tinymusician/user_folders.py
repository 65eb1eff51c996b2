"""The user's folders for data, caches, settings and state, as the operating system places them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path, user_config_path, user_data_path, user_state_path

from tinymusician.errors import StoreError

_FOLDERS = {"data": user_data_path, "cache": user_cache_path, "config": user_config_path, "state": user_state_path}


def user_folder(kind: Literal["data", "cache", "config", "state"]) -> Path:
    """This project's folder of a kind; it may not exist yet.

    Raises:
        StoreError: this user has no home folder, as in a container with an unknown user id.
    """
    try:
        return _FOLDERS[kind]("tinymusician")
    except RuntimeError:
        advice = f"set HOME, or XDG_{kind.upper()}_HOME for this folder alone"
        raise StoreError(f"this user has no home folder; {advice}") from None

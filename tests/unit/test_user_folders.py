"""A user id without a home folder, as containers run with: one line where a folder is needed, nothing elsewhere."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from jobs.launch.ray_environment import read_token
from tinymusician.artifacts.open import open_store
from tinymusician.errors import StoreError
from tinymusician.user_folders import user_folder


@pytest.fixture(autouse=True)
def _unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(_uid: int) -> None:
        raise KeyError("uid not found")

    for name in [name for name in os.environ if name.startswith(("HOME", "XDG_", "TMCTL_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)


def test_a_needed_folder_is_one_line() -> None:
    with pytest.raises(StoreError, match="no home folder; set HOME, or XDG_CACHE_HOME"):
        user_folder("cache")
    with pytest.raises(StoreError, match="no home folder; set HOME, or XDG_DATA_HOME"):
        open_store()
    assert read_token() is None


def test_named_folders_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(tmp_path.as_uri()).url == tmp_path.as_uri()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder("cache") == tmp_path / "tinymusician"

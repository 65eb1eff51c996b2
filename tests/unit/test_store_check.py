"""`tmctl store check`: a good store passes, and each fault is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli.main import app
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.store import LocalStore, StoreEntry
from tinymusician.artifacts.store_check import check_store


class LateList(LocalStore):
    """A list that lacks the last key, as one that is updated later."""

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        return iter(list(super().list(prefix))[:-1])


class StaleReads(LocalStore):
    """Reads of a value from before the last write, as through a cache."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        super().put(f"before/{key}", super().get(key) if super().exists(key) else data)
        super().put(key, data)

    def get(self, key: str) -> bytes:
        return super().get(f"before/{key}")


class MixedWrites(LocalStore):
    """Values that are written in place, half by half."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        whole = bytes(data)
        before = super().get(key) if super().exists(key) else whole
        super().put(key, before[: len(before) // 2] + whole[len(before) // 2 :])


class NothingDeleted(LocalStore):
    def delete(self, key: str) -> None:
        pass


class CutValues(LocalStore):
    def put(self, key: str, data: bytes | memoryview) -> None:
        super().put(key, bytes(data)[: 8 << 20])


def test_a_folder_has_all_guarantees_and_is_left_clean(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert [check.problem for check in check_store(store)] == [""] * 7
    assert not list(store.list(""))


@pytest.mark.parametrize(
    ("kind", "guarantee"),
    [
        (LateList, "a list after a write shows it"),
        (StaleReads, "a read after a write shows it"),
        (MixedWrites, "of concurrent writes one is there, whole"),
        (NothingDeleted, "a list after a deletion does not show it"),
        (CutValues, "a value is read as it was written"),
    ],
)
def test_faults_are_noticed(tmp_path: Path, kind: type[LocalStore], guarantee: str) -> None:
    assert guarantee in [check.guarantee for check in check_store(kind(tmp_path)) if check.problem]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMCTL_STORE", tmp_path.as_uri())
    ended = CliRunner().invoke(app, ["store", "check", "--rounds", "2"])
    assert ended.exit_code == 0
    assert ended.stdout.count("yes") == 7


@pytest.mark.slow
def test_a_real_s3_server(s3_store: S3Store) -> None:
    assert [check.problem for check in check_store(s3_store)] == [""] * 7

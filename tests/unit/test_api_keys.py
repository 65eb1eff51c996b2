"""API keys: storage, authentication, rate limits."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serve.api_keys import (
    ApiKey,
    ApiKeyAuthenticator,
    AuthenticationError,
    RateLimitError,
    edit_keys,
    new_key,
    read_keys,
)
from tinymusician.errors import KeyFileError


class Moment:
    def __init__(self) -> None:
        self.seconds, self.now = 0.0, datetime.now(UTC)

    def gate(self, path: Path | None) -> ApiKeyAuthenticator:
        return ApiKeyAuthenticator(path, lambda: self.seconds, lambda: self.now)


def made(
    path: Path, name: str = "shop", per_minute: int = 60, max_concurrency: int = 2, days: int | None = None
) -> str:
    text, key = new_key(name, per_minute, max_concurrency, days)
    with edit_keys(path, missing=True) as keys:
        keys.append(key)
    return text


def test_key_file_has_hashes_and_owner_permissions(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text = made(path)
    assert text.rpartition("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_the_exact_key_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text, gate = made(path), Moment()
    result = gate.gate(path).authenticate(f"Bearer {text}")
    assert isinstance(result, ApiKey)
    assert result.name == "shop"
    swapped = text[:-1] + ("A" if text[-1] != "A" else "B")
    for shown in (None, "", "Bearer", text, f"Basic {text}", f"Bearer {swapped}", "Bearer tm_00000000_x", "Bearer ü"):
        with pytest.raises(AuthenticationError):
            gate.gate(path).authenticate(shown)


def test_key_expires_and_is_revoked_at_run_time(tmp_path: Path) -> None:
    path, moment = tmp_path / "keys.json", Moment()
    short, long = made(path, days=1), made(path)
    gate = moment.gate(path)
    assert gate.authenticate(f"Bearer {short}") is not None
    moment.now += timedelta(days=2)
    with pytest.raises(AuthenticationError, match="expired"):
        gate.authenticate(f"Bearer {short}")
    with edit_keys(path) as keys:
        keys[:] = [key for key in keys if key.expires < moment.now]
    with pytest.raises(AuthenticationError, match="is unknown"):
        gate.authenticate(f"Bearer {long}")


def test_damaged_key_file_rejects_all_requests_until_repaired(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text = made(path)
    whole, gate = path.read_text(), Moment().gate(path)
    path.write_text(whole[:50])
    with pytest.raises(AuthenticationError, match="cannot read its key file"):
        gate.authenticate(f"Bearer {text}")
    path.write_text(whole)
    assert gate.authenticate(f"Bearer {text}") is not None
    path.write_text("[]")
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        ApiKeyAuthenticator(path)
    with pytest.raises(KeyFileError, match="no such file"):
        read_keys(tmp_path / "missing")


def test_rate_limit_of_a_key_refills(tmp_path: Path) -> None:
    path, moment = tmp_path / "keys.json", Moment()
    text = made(path, per_minute=30, max_concurrency=5)
    gate = moment.gate(path)
    key = gate.authenticate(f"Bearer {text}")
    for _ in range(30):
        with gate.slot(key):
            pass
    with pytest.raises(RateLimitError) as often, gate.slot(key):
        pass
    assert often.value.retry_after == pytest.approx(2.0)
    moment.seconds += 2.0
    with gate.slot(key):
        pass
    with pytest.raises(RateLimitError), gate.slot(key):
        pass


def test_concurrency_limit_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text = made(path, max_concurrency=1)
    gate = Moment().gate(path)
    key = gate.authenticate(f"Bearer {text}")
    with pytest.raises(RateLimitError), gate.slot(key), gate.slot(key):
        pass
    with gate.slot(key):
        pass


def test_no_key_file_means_no_authentication() -> None:
    gate = ApiKeyAuthenticator(None)
    assert gate.authenticate(None) is None
    with gate.slot(None):
        pass


def test_concurrently_created_keys_are_all_stored(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=made, args=(path, f"n{number}")) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in read_keys(path).keys) == sorted(f"n{number}" for number in range(12))


def test_failed_key_edit_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made(path)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), edit_keys(path) as keys:
        keys[:] = [1 / 0 for _ in keys]  # type: ignore[misc]
    assert path.read_bytes() == before

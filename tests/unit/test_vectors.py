"""The published test vectors are up to date, and the client agrees with them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.vectors import PATH, content
from tinymusician.artifacts.installation import Installation, InstallState
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.release import latest_key
from tinymusician.artifacts.sources import RangeResponse, interpret_status
from tinymusician.artifacts.timestamp import timestamp_key
from tinymusician.artifacts.trust import read_first, root_key
from tinymusician.errors import NotFoundError, UntrustedError

VECTORS = json.loads(PATH.read_text())
NOW = datetime.fromisoformat(VECTORS["now"])


class Held:
    """A source of a few values."""

    url = "memory:"

    def __init__(self, values: dict[str, bytes]) -> None:
        self._values = values

    def read(self, key: str, most: int) -> bytes:
        if key not in self._values:
            raise NotFoundError(key)
        return self._values[key][:most]

    @contextmanager
    def open(self, key: str, start: int, tag: str) -> Iterator[RangeResponse]:
        yield RangeResponse(0, "", iter([self.read(key, 1 << 20)]))


def test_the_file_is_up_to_date() -> None:
    assert PATH.read_text() == content(), "run `python -m tests.vectors`"


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_case(case: dict[str, Any], tmp_path: Path) -> None:
    roots = [base64.b64decode(one) for one in case["roots"]]
    values = {root_key(number + 1): data for number, data in enumerate(roots)}
    values[latest_key("band", "stable")] = base64.b64decode(case["release"])
    if case["timestamp"] is not None:
        values[timestamp_key("band", "stable")] = base64.b64decode(case["timestamp"])
    if case["installed"] is not None:
        first, installed = read_first(roots[0]), case["installed"]
        versions = {"band@stable": (installed["version"], installed["digest"])}
        Installation(tmp_path).write(
            InstallState(pinned=case["pinned"], root=first, seen=first.created, latest=versions)
        )
    client = PullClient("band@stable", tmp_path, [Held(values)], case["pinned"], lambda: NOW)
    if case["expect"] == "refuse":
        with pytest.raises(UntrustedError):
            client.check()
    else:
        assert client.check().version.release.version == 5


@pytest.mark.parametrize("case", VECTORS["ranges"], ids=str)
def test_range(case: dict[str, Any]) -> None:
    assert interpret_status(case["status"], case["content_range"], case["start"]) == case["do"]


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node is here")
def test_javascript_client_agrees() -> None:
    """tests/vectors.mjs knows nothing of this code: another parser, another canonical form, another Ed25519."""
    script = PATH.parents[2] / "tests" / "vectors.mjs"
    ended = subprocess.run(["node", script, PATH], capture_output=True, check=True)
    result = json.loads(ended.stdout)
    assert {name: said.partition(":")[0] for name, said in result["cases"].items()} == {
        case["name"]: case["expect"] for case in VECTORS["cases"]
    }
    assert result["ranges"] == [case["do"] for case in VECTORS["ranges"]]

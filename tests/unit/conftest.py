"""What unit tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A publisher and a device."""
    return World(tmp_path)

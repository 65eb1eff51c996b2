"""Shared by all tests: no model hub, one thread, and a small MusicGen with random weights."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


@pytest.fixture(scope="session")
def tiny_musicgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MusicGen folder of 4 decoder layers over 4 codebooks of 16 codes; its logits are made to differ clearly."""
    from tests.tiny import write_tiny_musicgen

    return write_tiny_musicgen(tmp_path_factory.mktemp("models") / "tiny")

"""The quantization cache of a machine."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.quantize.workspace import remove_stale_scratch
from tinymusician.artifacts.store import DAY


def test_only_old_drafts_are_swept(tmp_path: Path) -> None:
    for name, age in (("tmpkilled", 2 * DAY), ("tmpworking", DAY / 2), ("5a19c0", 2 * DAY)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "decoder.onnx").write_bytes(b"half")
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    remove_stale_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5a19c0", "tmpworking"]

"""Writes a run's metrics as TensorBoard event files into the store: one after the other, none larger than a part."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tinymusician.artifacts.append_log import PART_BYTES
from tinymusician.artifacts.runs import RunStore

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

    from tinymusician.training.metrics import Row


class TensorBoardLogger:
    """A metric sink. An event file in a scratch folder is copied to the store; a large one is followed by another."""

    def __init__(self, run: RunStore, stage: str, resume_at: int) -> None:
        self._run, self._stage = run, stage
        self._scratch, self._numbers, self._lock = tempfile.TemporaryDirectory(), count(), threading.Lock()
        self._folder, self._writer = self._open(resume_at + 1 if resume_at >= 0 else None)

    def add(self, row: Row) -> None:
        with self._lock:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        with self._lock:
            self._writer.flush()
            (path,) = self._folder.iterdir()
            is_full = path.stat().st_size > PART_BYTES
            if is_full:
                self._writer.close()
                self._folder, self._writer = self._open()
        self._run.write_tensorboard(self._stage, path)
        if is_full:
            path.unlink()

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk, which `flush` has reported
            self._writer.close()

    def _open(self, purge_step: int | None = None) -> tuple[Path, SummaryWriter]:
        """A new event file in a folder of its own; TensorBoard reads files in the order of their names."""
        from tensorboardX import SummaryWriter

        number = next(self._numbers)
        folder = Path(self._scratch.name) / str(number)
        return folder, SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=f".{number:06d}")

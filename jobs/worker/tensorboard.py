"""Writes a run's metrics as TensorBoard event files into the store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tinymusician.artifacts.runs import RunStore

if TYPE_CHECKING:
    from tinymusician.training.metrics import Row


class TensorBoardLogger:
    """Writes rows to an event file in a scratch folder and copies it to the store when they are flushed."""

    def __init__(self, run: RunStore, stage: str, resume_at: int) -> None:
        from tensorboardX import SummaryWriter

        self._run, self._stage = run, stage
        self._scratch = tempfile.TemporaryDirectory()
        purge = resume_at + 1 if resume_at >= 0 else None
        self._writer = SummaryWriter(self._scratch.name, purge_step=purge)

    def add(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        self._writer.flush()
        for path in Path(self._scratch.name).iterdir():
            self._run.write_tensorboard(self._stage, path)

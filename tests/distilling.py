"""What tests of distillation share: a small token set, and a task over every one of its rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.distill.job import loss_weights_at
from tests.tiny import CAPTIONS
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.distill.signals import OnlineTeacher
from tinymusician.distill.task import DistillTask, TemperatureSchedule
from tinymusician.models.musicgen import load_tokenizer
from tinymusician.recipe import Objective, PlainObjectiveConfig


def tiny_tokens(folder: Path, rows: int = 8, frames: int = 12) -> TokenDataset:
    """Random codes of the tiny MusicGen in a folder, with captions it knows."""
    codes = np.random.default_rng(0).integers(0, 16, (rows, 4, frames)).astype(np.int16)
    captions = [CAPTIONS[row % len(CAPTIONS)] for row in range(rows)]
    return TokenDataset(codes, *tokenize_captions(load_tokenizer(str(folder)), captions))


def task_of(
    student: Any,
    source: OnlineTeacher,
    objective: Objective | None = None,
    steps: int = 1,
    temperature: float = 1.0,
    batch: int = 8,
    **more: Any,
) -> DistillTask:
    """Distillation by one source, which judges too; forward KL if no objective is named."""
    return DistillTask(
        student=student,
        train=source,
        train_rows=8,
        held_out=source,
        held_out_rows=8,
        mixture_at=partial(loss_weights_at, objective or PlainObjectiveConfig(name="forward"), steps),
        softening=TemperatureSchedule(temperature, 1.0, "sequence", steps),
        batch_size=batch,
        seed=0,
        **more,
    )

"""Fixtures of distillation tests: a small token set, and a task over all of its rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.distill.objective import loss_weights_at
from tests.tiny import CAPTIONS
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.distill.schedules import TemperatureSchedule
from tinymusician.distill.signals import OnlineTeacher, SignalSet
from tinymusician.distill.task import DistillTask, HiddenLossConfig, ObjectiveConfig
from tinymusician.models.musicgen import load_tokenizer
from tinymusician.recipe import Objective, PlainObjectiveConfig


def tiny_tokens(folder: Path, rows: int = 8, frames: int = 12) -> TokenDataset:
    """Random codes of the tiny MusicGen in a folder, with captions that it knows."""
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
    hidden: HiddenLossConfig | None = None,
    **more: Any,
) -> DistillTask:
    """Distillation from one source, which also validates; forward KL if no objective is named."""
    return DistillTask(
        student,
        SignalSet(source, 8),
        SignalSet(source, 8),
        ObjectiveConfig(
            partial(loss_weights_at, (objective := objective or PlainObjectiveConfig(name="forward")), steps),
            TemperatureSchedule(temperature, 1.0, "sequence", steps),
            hidden,
            objective.hard,
        ),
        batch_size=batch,
        seed=0,
        **more,
    )

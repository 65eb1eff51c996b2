"""The results of a sweep as typed documents: the aggregate step writes a `SweepResult` to a run's report.json."""

from __future__ import annotations

from tinymusician.config_model import Document, Number
from tinymusician.evaluate.claims import Claim
from tinymusician.training.metrics import Row


class Divergence(Document):
    """A loss that was not finite: the reason, and the step of the checkpoint that is evaluated instead."""

    step: int
    reason: str


class TrialCurves(Document):
    """The metrics of one training by step."""

    rows: tuple[Row, ...]
    diverged: Divergence | None = None


class StudentMetrics(Document):
    """A trained student, measured in the same way for all objectives.

    `kl`, `reverse_kl` (nats per code) and `agreement` are to the teacher on the test prompts; `test_loss` and
    `fluctuation` are of the student's own objective; `kad`, `clap`, `teacher_nll` and `code_entropy` (nats per code) of
    the clips that it generates.
    """

    kl: Number
    reverse_kl: Number
    agreement: Number
    test_loss: Number
    fluctuation: Number
    kad: Number
    clap: Number
    teacher_nll: Number
    code_entropy: Number


class SeedResult(Document):
    """One training."""

    seed: int
    curves: TrialCurves
    final: StudentMetrics


Grid = dict[str, tuple[SeedResult, ...]]
"""By value of the setting that differs, the trainings of all seeds."""


class SweepResult(Document):
    """All grids by name, the paper's claims about them, and the conditions of the measurement."""

    recipe: str
    grids: dict[str, Grid]
    claims: tuple[Claim, ...]
    provenance: dict[str, str]

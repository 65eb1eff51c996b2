"""Trainer, engines and checkpoints: DeepSpeed against plain PyTorch, resumed against uninterrupted runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import DigestMismatchError, NonFiniteLossError
from tinymusician.training.checkpoint import Checkpoint, CheckpointManager
from tinymusician.training.engine import AdamConfig, full_state
from tinymusician.training.loop import RankInfo, Trainer, TrainerConfig
from tinymusician.training.lr_schedule import learning_rate
from tinymusician.training.metrics import MetricsLog, read_metrics
from tinymusician.training.torch_engine import TorchEngine

SETTINGS = AdamConfig(weight_decay=0.1, max_grad_norm=0.5)
ROWS = 6


@pytest.fixture(autouse=True)
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Net(nn.Module):
    """Odd sizes, so that partitions do not divide evenly; a frozen parameter and a buffer besides."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 13), nn.Linear(13, 3)
        self.dropout = nn.Dropout(dropout)
        self.last.bias.requires_grad_(False)
        self.register_buffer("shift", torch.linspace(-1, 1, 13))

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.last(self.dropout(nn.functional.gelu(self.first(rows) + self.shift.to(rows.dtype))))
        return result


class Regression:
    """Fit a fixed linear map."""

    def __init__(self, dropout: float = 0.0, broken: tuple[int, ...] = ()) -> None:
        """The first row of `broken` steps is no number."""
        torch.manual_seed(0)
        self.module, self.broken = Net(dropout).eval(), broken

    def rows(self, step: int, part: int, parts: int) -> np.ndarray[Any, Any]:
        return step * ROWS + np.arange(part * ROWS // parts, (part + 1) * ROWS // parts)

    def batch(self, step: int, part: int, parts: int) -> Tensor:
        """All parts together are the same batch, whatever their number."""
        rows = torch.randn(ROWS, 7, generator=torch.Generator().manual_seed(step))
        rows[0, 0] *= math.nan if step in self.broken else 1
        return rows[part * ROWS // parts : (part + 1) * ROWS // parts]

    def loss(self, model: Any, batch: Tensor, step: int, diagnostics: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        target = batch @ torch.linspace(-1, 1, 21).view(7, 3)
        return (model(batch.to(self.module.first.weight.dtype)).float() - target).square().mean(), {}

    def validate(self, model: Any) -> dict[str, float]:
        return {"error": self.loss(model, self.batch(10_000, 0, 1), 0)[0].item()}


def plan(log_every: int = 1, parts: int = 0) -> TrainerConfig:
    return TrainerConfig(12, 0.05, 3, log_every, 4, 2, "error", microbatches=parts)


def run(store: LocalStore, log_every: int = 1, dropout: float = 0.0) -> list[dict[str, Any]]:
    """Train to the plan's end, from the newest checkpoint if there is one; returns the metrics."""
    checkpoints = CheckpointManager(store, "checkpoints", "error")
    start, task = checkpoints.latest(), Regression(dropout)
    engine = TorchEngine(task.module, SETTINGS, state=start.state if start else None)
    metrics = MetricsLog(store, "metrics.jsonl", start.step if start else -1)
    Trainer(task, engine, plan(log_every), metrics, checkpoints, start=start).run()
    return read_metrics(store, "metrics.jsonl")


def losses(rows: list[dict[str, Any]]) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


class Killed(Exception):
    pass


def latest(checkpoints: CheckpointManager) -> Checkpoint:
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    return checkpoint


def shard_key(store: LocalStore, step: int) -> str:
    """The key of the only shard of a checkpoint."""
    entry = json.loads(store.get(f"checkpoints/step-{step:08d}.json"))
    (shard,) = entry["shards"]
    return str(shard["key"])


def run_killed_at(store: LocalStore, step: int, log_every: int = 1, dropout: float = 0.0) -> None:
    """A run that dies between two steps, without any goodbye."""
    task = Regression(dropout)

    def die(done: int) -> None:
        if done == step:
            raise Killed

    metrics, checkpoints = MetricsLog(store, "metrics.jsonl", -1), CheckpointManager(store, "checkpoints", "error")
    with pytest.raises(Killed):
        Trainer(task, TorchEngine(task.module, SETTINGS), plan(log_every), metrics, checkpoints, heartbeat=die).run()
    checkpoints.drain()


def test_trainer_learns_and_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    rows = run(LocalStore(tmp_path))
    result = losses(rows)
    assert sorted(result) == list(range(1, 13))
    assert result[12] < 0.5 * result[1]
    judged = {row["step"]: row["held_out/error"] for row in rows if "held_out/error" in row}
    assert sorted(judged) == [0, 4, 8, 12]
    checkpoints = CheckpointManager(LocalStore(tmp_path), "checkpoints", "error")
    assert latest(checkpoints).history.best_step == min(judged, key=lambda step: judged[step])
    assert checkpoints.history.initial == pytest.approx({"error": judged[0]}, abs=1e-6)
    assert checkpoints.steps()[-2:] == [10, 12]
    assert all({"gradient_norm", "learning_rate", "step_seconds"} <= set(row) for row in rows if "loss" in row)


@pytest.mark.parametrize(("log_every", "dropout"), [(1, 0.0), (3, 0.0), (5, 0.2)])
def test_killed_run_resumes_with_the_same_losses(tmp_path: Path, log_every: int, dropout: float) -> None:
    """Whatever the rhythm of reports, and with the same units dropped."""
    whole = losses(run(LocalStore(tmp_path / "whole"), log_every, dropout))
    store = LocalStore(tmp_path / "killed")
    run_killed_at(store, 7, log_every, dropout)
    assert CheckpointManager(store, "checkpoints", "error").steps()[-1] == 6
    resumed = losses(run(store, log_every, dropout))
    assert resumed == whole
    plain = losses(run(LocalStore(tmp_path / "plain"), log_every))
    assert (whole == plain) == (dropout == 0)


def test_partial_checkpoints_are_invisible(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    run_killed_at(store, 7)
    store.upload(Path(__file__), "checkpoints/step-00000007/x-0-of-1.safetensors")  # its entry never came
    assert CheckpointManager(store, "checkpoints", "error").steps()[-1] == 6


def test_damaged_checkpoint_is_rejected(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    run_killed_at(store, 7)
    key = shard_key(store, 6)
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(DigestMismatchError, match=r"step-00000006/\S+\.safetensors: damaged"):
        CheckpointManager(store, "checkpoints", "error").latest()
    store.delete("checkpoints/step-00000006.json")  # as the message advises; it may have been the best one
    resumed = losses(run(store))
    assert resumed == losses(run(LocalStore(tmp_path / "whole")))
    store.put("checkpoints/step-00000012.json", b"{")
    with pytest.raises(DigestMismatchError, match=r"step-00000012\.json: damaged"):
        CheckpointManager(store, "checkpoints", "error").latest()


def test_non_finite_values_are_never_checkpointed(tmp_path: Path) -> None:
    """A report comes before every checkpoint, so a run that diverged goes on from before it did."""
    store, task = LocalStore(tmp_path), Regression()

    def spoil(done: int) -> None:
        if done == 5:
            with torch.no_grad():
                task.module.first.weight.fill_(float("nan"))

    metrics, checkpoints = MetricsLog(store, "m", -1), CheckpointManager(store, "c", "error")
    with pytest.raises(NonFiniteLossError):
        Trainer(task, TorchEngine(task.module, SETTINGS), plan(12), metrics, checkpoints, heartbeat=spoil).run()
    assert all(value.isfinite().all() for value in latest(checkpoints).state.weights.values())


def test_non_finite_loss_ends_the_run(tmp_path: Path) -> None:
    task = Regression()
    with torch.no_grad():
        task.module.first.weight.fill_(float("inf"))
    store = LocalStore(tmp_path)
    with pytest.raises(
        NonFiniteLossError, match=r"loss is nan at step 1, on rows 0, 1, .*step 0; lower the learning rate"
    ):
        Trainer(
            task,
            TorchEngine(task.module, SETTINGS),
            plan(),
            MetricsLog(store, "m", -1),
            CheckpointManager(store, "c", "error"),
        ).run()


def test_sequences_of_a_non_finite_loss_are_named(tmp_path: Path) -> None:
    """Of three parts only the first has the broken row; what was kept before it is said, and is what is there."""
    store, task = LocalStore(tmp_path), Regression(broken=(7,))
    checkpoints = CheckpointManager(store, "c", "error")
    loop = Trainer(task, TorchEngine(task.module, SETTINGS), plan(parts=3), MetricsLog(store, "m", -1), checkpoints)
    with pytest.raises(
        NonFiniteLossError, match=r"loss is nan at step 8, on rows 42, 43; the last good checkpoint is of step 6"
    ):
        loop.run()
    assert checkpoints.steps()[-1] == 6


def test_skipped_step_updates_nothing(tmp_path: Path) -> None:
    """Leaving out a broken step is training on the others, at their own rates."""
    store, task = LocalStore(tmp_path), Regression(broken=(4,))
    engine = TorchEngine(task.module, SETTINGS)
    skipping = replace(plan(), skipped_steps=frozenset({4}))
    Trainer(task, engine, skipping, MetricsLog(store, "m", -1), CheckpointManager(store, "c", "error")).run()
    other = Regression()
    plain = TorchEngine(other.module, SETTINGS)
    for step in (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11):
        plain.step(other.loss(plain, other.batch(step, 0, 1), step)[0], learning_rate(step, 0.05, 3, 12))
    actual = full_state(engine).weights
    for name, value in full_state(plain).weights.items():
        torch.testing.assert_close(actual[name], value)
    assert sorted(losses(read_metrics(store, "m"))) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_microbatches_sum_to_the_batch(tmp_path: Path, parts: int) -> None:
    """Any number of equal parts gives the losses and weights of one; so it does not matter who does how many."""
    actual = []
    for count in (1, parts):
        store, task = LocalStore(tmp_path / str(count)), Regression()
        engine = TorchEngine(task.module, SETTINGS)
        Trainer(
            task, engine, plan(parts=count), MetricsLog(store, "m", -1), CheckpointManager(store, "c", "error")
        ).run()
        actual.append((losses(read_metrics(store, "m")), full_state(engine).weights))
    (expected, weights), (mine, others) = actual
    assert mine == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_group_is_counted_once(world: int) -> None:
    """Over all workers the weights of a microbatch sum to the same, even if a worker repeats one to keep step."""
    shares = [RankInfo(rank, world).microbatch_weights(4) for rank in range(world)]
    assert len({len(shares_of_worker) for shares_of_worker in shares}) == 1, "their gradients meet at every part"
    total = [
        sum(weight for shares_of_worker in shares for part, weight in shares_of_worker if part == which)
        for which in range(4)
    ]
    assert total == pytest.approx([world / 4] * 4)


def test_diagnostics_are_of_logged_steps(tmp_path: Path) -> None:
    """Each log row has them, and they are averaged over the steps that have them; losses are averaged over all."""

    class Diagnosed(Regression):
        def loss(
            self, model: Any, batch: Tensor, step: int, diagnostics: bool = True
        ) -> tuple[Tensor, dict[str, Tensor]]:
            loss, scalars = super().loss(model, batch, step)
            return loss, scalars | ({"diagnosis": torch.tensor(float(step))} if diagnostics else {})

    store, task = LocalStore(tmp_path), Diagnosed()
    checkpoints = CheckpointManager(store, "checkpoints", "error")
    Trainer(task, TorchEngine(task.module, SETTINGS), plan(3), MetricsLog(store, "metrics", -1), checkpoints).run()
    rows = [row for row in read_metrics(store, "metrics") if "loss" in row]
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8, 9, 10, 12], "every third step, and those of checkpoints"
    assert [row["diagnosis"] for row in rows] == [step - 1 for step in (2, 3, 4, 6, 8, 9, 10, 12)]
    assert all(0 < row["data_share"] < 1 for row in rows)


def test_a_notice_leads_to_one_checkpoint(tmp_path: Path) -> None:
    """At once, with a log row; a run that is killed then continues from there, and learns the same."""
    calm = losses(run(LocalStore(tmp_path / "calm")))
    store, task, notices = LocalStore(tmp_path / "noticed"), Regression(0.0), iter([False, True])
    rare = replace(plan(log_every=3), checkpoint_every=12, validate_every=12)
    metrics, checkpoints = MetricsLog(store, "metrics.jsonl", -1), CheckpointManager(store, "checkpoints", "error")

    def die(done: int) -> None:
        if done == 7:
            raise Killed

    engine = TorchEngine(task.module, SETTINGS)
    with pytest.raises(Killed):
        Trainer(task, engine, rare, metrics, checkpoints, heartbeat=die, has_notice=lambda: next(notices)).run()
    metrics.flush()
    checkpoints.drain()
    assert checkpoints.steps() == [0, 2]
    assert sorted(losses(read_metrics(store, "metrics.jsonl"))) == [2, 3, 6]
    resumed = losses(run(store))
    assert {step: resumed[step] for step in range(3, 13)} == pytest.approx({step: calm[step] for step in range(3, 13)})

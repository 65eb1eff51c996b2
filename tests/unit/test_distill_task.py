"""Distillation of a tiny pair in one process: both targets, all objectives, held-out metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr

from jobs.distill.objective import loss_weights_at
from tests.distill_tasks import task_of, tiny_tokens
from tests.tiny import CAPTIONS
from tinymusician.codebooks import valid
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.distill.closeness import closeness, held_out_kl
from tinymusician.distill.sampling_stats import sample_stats
from tinymusician.distill.schedules import TemperatureSchedule
from tinymusician.distill.signals import DecoderBatch, OnlineTeacher, PrefetchingSource, Rows, TeacherSignals
from tinymusician.distill.task import DistillTask
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.prune_layers import prune_layers
from tinymusician.recipe import FixedBiKLConfig, Objective, PlainObjectiveConfig, StageMixedConfig, SwitchedBiKLConfig
from tinymusician.training.engine import AdamConfig
from tinymusician.training.torch_engine import TorchEngine

OBJECTIVES: list[Objective] = [
    PlainObjectiveConfig(name="forward"),
    PlainObjectiveConfig(name="reverse"),
    PlainObjectiveConfig(name="bikl"),
    FixedBiKLConfig(name="fixed_bikl", weight=0.3),
    SwitchedBiKLConfig(name="switched_bikl", switch=0.5),
    StageMixedConfig(name="stage_mixed", switch=0.5, transition=0.2),
]


def build(folder: Path, target: Any, objective: Objective, steps: int) -> DistillTask:
    teacher = load_musicgen(str(folder))
    source = OnlineTeacher(teacher, tiny_tokens(folder), target, 3.0, torch.float32)
    return task_of(prune_layers(teacher, [0, 3]), source, objective, steps, temperature=2.0)


@pytest.mark.parametrize("target", ["conditional", "guided"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_every_objective_reduces_the_divergence(tiny_musicgen: Path, target: Any, objective: Objective) -> None:
    task = build(tiny_musicgen, target, objective, 40)
    engine = TorchEngine(task.module, AdamConfig())
    before = task.validate(engine)
    for step in range(40):
        loss, scalars = task.loss(engine, task.batch(step, 0, 1), step)
        engine.step(loss, 3e-3)
    after = task.validate(engine)
    assert after["kl"] < 0.5 * before["kl"]
    assert after["agreement"] > before["agreement"]
    assert after["kl"] == pytest.approx(sum(after[f"kl/{k}"] for k in (1, 2, 3, 4)) / 4)
    assert scalars["temperature"].item() == pytest.approx(1.5)


def test_activation_checkpointing_changes_no_loss(tiny_musicgen: Path) -> None:
    """Not the losses, nor what is learned of them; what layers keep for the backward pass becomes less."""

    def trained(recompute: bool) -> tuple[list[float], int]:
        task, saved_elements = build(tiny_musicgen, "conditional", OBJECTIVES[0], 5), 0
        if recompute:
            task.student.decoder.gradient_checkpointing_enable({"use_reentrant": False})
        engine, losses = TorchEngine(task.module, AdamConfig()), []
        task.module.train()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved_elements
            saved_elements += tensor.numel()
            return tensor

        for step in range(5):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss, _ = task.loss(engine, task.batch(step, 0, 1), step)
            losses.append(loss.item())
            engine.step(loss, 3e-3)
        return losses, saved_elements

    (plain, all_of_it), (again, some) = trained(False), trained(True)
    assert again == pytest.approx(plain, rel=1e-6)
    assert some < 0.5 * all_of_it


def test_hard_labels_are_the_sequences_codes(tiny_musicgen: Path) -> None:
    """Against float64: codebook k predicts code t at step t + k; the very last code is no input, so no label."""
    hard = PlainObjectiveConfig(name="forward", hard=0.25)
    task, plain = (build(tiny_musicgen, "guided", one, 5) for one in (hard, PlainObjectiveConfig(name="forward")))
    engine = TorchEngine(task.module, AdamConfig())
    batch = task.batch(0, 0, 1)
    loss, metrics = task.loss(engine, batch, 0)
    logits = task.student_logits(engine, batch).detach().double().numpy()
    codes = tiny_tokens(tiny_musicgen).codes[task.rows(0, 0, 1)]
    rows, codebooks, frames = codes.shape
    log_p = log_softmax(logits, -1)
    surprise = [
        -log_p[row, book, frame + book, codes[row, book, frame]]
        for row in range(rows)
        for book in range(codebooks)
        for frame in range(frames)
        if (book, frame) != (codebooks - 1, frames - 1)
    ]
    assert metrics["hard"].item() == pytest.approx(np.mean(surprise), rel=1e-5)
    kl, _ = plain.loss(TorchEngine(plain.module, AdamConfig()), batch, 0)
    assert loss.item() == pytest.approx(0.75 * kl.item() + 0.25 * np.mean(surprise), rel=1e-5)


def test_stages_follow_the_recipe() -> None:
    staged = StageMixedConfig(name="stage_mixed", switch=0.5, transition=0.0, beta=0.25, gamma=0.75, skew=0.2)
    assert tuple(loss_weights_at(staged, 10, 4)) == (0.25, 0, 0.75, 0, 0.2)
    assert tuple(loss_weights_at(staged, 10, 5)) == (0, 0.75, 0, 0.25, 0.2)
    assert tuple(loss_weights_at(PlainObjectiveConfig(name="bikl"), 10, 9))[:2] == (1, 1)


def test_closeness_agrees_with_float64() -> None:
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(0, 2, (2, 3, 4, 9, 16)).astype(np.float32)
    mask = torch.from_numpy(valid(4, 6)).expand(3, -1, -1)
    figures = closeness(torch.from_numpy(teacher), torch.from_numpy(student), mask)
    p, q = (np.exp(log_softmax(z.astype(np.float64), -1)) for z in (teacher, student))
    for k in range(4):
        valid_steps = mask[:, k].numpy()
        assert figures[f"kl/{k + 1}"].item() == pytest.approx(
            rel_entr(p, q).sum(-1)[:, k][valid_steps].mean(), rel=1e-5
        )
        same = (teacher.argmax(-1) == student.argmax(-1))[:, k][valid_steps].mean()
        assert figures[f"agreement/{k + 1}"].item() == pytest.approx(same)
        entropy = -(q * np.log(q)).sum(-1)[:, k][valid_steps].mean()
        assert figures[f"entropy/{k + 1}"].item() == pytest.approx(entropy, rel=1e-5)
        surprise = -(q * np.log(p)).sum(-1)[:, k][valid_steps].mean()
        assert figures[f"cross_entropy/{k + 1}"].item() == pytest.approx(surprise, rel=1e-5)


@pytest.mark.parametrize("copies", [1, 2])
def test_the_kl_of_each_sequence_agrees_with_float64(copies: int) -> None:
    """Over batches of two; a source with and without text has two rows for each sequence."""
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(0, 2, (2, copies, 3, 4, 9, 16)).astype(np.float32)
    lengths = torch.tensor([9, 5, 7])[:, None, None]
    mask = torch.from_numpy(valid(4, 6)).expand(3, -1, -1) & (torch.arange(9) < lengths)

    def rows_of(values: np.ndarray, rows: Rows) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(list(values[:, rows])))

    def signals(rows: Rows) -> TeacherSignals:
        both = torch.cat([mask[rows]] * copies)
        return TeacherSignals(DecoderBatch(both, both, both, both, both, both), rows_of(teacher, rows))

    batches = iter([np.array([0, 1]), np.array([2])])
    source = PrefetchingSource(lambda rows: lambda: signals(rows), 0)
    kl = held_out_kl(source, 3, 2, lambda _: rows_of(student, next(batches)))
    p, q = (np.exp(log_softmax(z.astype(np.float64), -1)) for z in (teacher, student))
    by_position = rel_entr(p, q).sum(-1).mean(0)
    for row in range(3):
        by_codebook = [by_position[row, k][mask[row, k].numpy()].mean() for k in range(4)]
        assert kl[row] == pytest.approx(np.mean(by_codebook), rel=1e-5)


def test_temperature_along_both_axes() -> None:
    assert TemperatureSchedule(3.0, 1.0, "sequence", 100).at(7, 5).tolist() == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert TemperatureSchedule(3.0, 1.0, "training", 100).at(50, 3).tolist() == [2.0, 2.0, 2.0]


def test_teacher_samples_have_the_lowest_teacher_nll(tiny_musicgen: Path) -> None:
    """The cross-entropy of a model's own samples is its entropy; another model's samples surprise it more."""
    teacher = load_musicgen(str(tiny_musicgen))
    ids, mask = tokenize_captions(load_tokenizer(str(tiny_musicgen)), CAPTIONS * 8)
    prompts = TokenDataset(np.zeros((32, 4, 20), np.int16), ids, mask)
    stranger = prune_layers(teacher, [2])
    teacher_samples, student_samples = (
        sample_stats(teacher, model, prompts, 1.0, 16, 1.0, 0, batch_size=32) for model in (teacher, stranger)
    )
    assert teacher_samples.cross_entropy < student_samples.cross_entropy
    few = sample_stats(teacher, teacher, prompts, 1.0, 16, 1.0, 0, batch_size=5)
    assert few.cross_entropy == pytest.approx(teacher_samples.cross_entropy, rel=0.1), (
        "other draws of the same distribution"
    )

"""Masked prediction: the losses against NumPy, what student and teacher see, and the moving averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinymusician.models.audio_encoder import AudioEncoder, AudioEncoderShape
from tinymusician.models.spectral_front_end import FrontEndConfig, Scale
from tinymusician.understand.masked_prediction import (
    MaskedPredictionConfig,
    MaskedPredictor,
    best_hypothesis,
    class_loss,
    class_probabilities,
    prediction_loss,
    schedules,
)
from tinymusician.understand.pretrain_task import MaskedPredictionTask

CONFIG = MaskedPredictionConfig(
    steps=10,
    predictor_width=24,
    predictor_layers=1,
    predictor_heads=2,
    hypotheses=3,
    classes=16,
    class_hidden=12,
    class_bottleneck=8,
    encoder_decay=(0.9, 0.99),
    head_decay=(0.5, 1.0),
)
SHAPE = AudioEncoderShape(24, 1, 2, 48, block_columns=4, front_end=FrontEndConfig(Scale(0, 1), Scale(0, 1)))


def predictor() -> MaskedPredictor:
    torch.manual_seed(0)
    return MaskedPredictor(AudioEncoder(SHAPE), CONFIG).eval()


def batch(clips: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    spectra = torch.from_numpy(rng.normal(size=(clips, 2, 80, 64)).astype(np.float32))
    return spectra, torch.from_numpy(rng.random((clips, 20)).argsort(1))


def numpy_distances(hypotheses: np.ndarray, target: np.ndarray) -> np.ndarray:
    unit = hypotheses / np.linalg.norm(hypotheses, axis=-1, keepdims=True)
    unit_target = target / np.linalg.norm(target, axis=-1, keepdims=True)
    return 2 - 2 * (unit * unit_target[:, :, None]).sum(-1)


def test_prediction_loss_is_the_soft_minimum() -> None:
    rng = np.random.default_rng(0)
    hypotheses, target = rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(2, 4, 5))
    distances = numpy_distances(hypotheses, target)
    weights = np.exp(-distances / 0.3)
    expected = (distances * weights / weights.sum(-1, keepdims=True)).sum(-1).mean()
    tensors = torch.from_numpy(hypotheses).float(), torch.from_numpy(target).float()
    assert prediction_loss(*tensors, temperature=0.3, min_temperature=1e-4).item() == pytest.approx(expected, abs=1e-5)
    cold = prediction_loss(*tensors, temperature=9e-5, min_temperature=1e-4).item()
    assert cold == pytest.approx(distances.min(-1).mean(), abs=1e-5)
    best = best_hypothesis(*tensors)
    np.testing.assert_allclose(best[1, 2], hypotheses[1, 2, distances[1, 2].argmin()], atol=1e-6)


def test_class_loss_is_cross_entropy_with_the_sharpened_teacher() -> None:
    rng = np.random.default_rng(1)
    logits, teacher, center = rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), rng.normal(size=6)
    sharp = np.exp((teacher - center) / 0.5)
    sharp /= sharp.sum(-1, keepdims=True)
    log = logits / 0.1 - np.log(np.exp(logits / 0.1).sum(-1, keepdims=True))
    probabilities = class_probabilities(torch.from_numpy(teacher).float(), torch.from_numpy(center).float(), 0.5)
    loss = class_loss(torch.from_numpy(logits).float(), probabilities, 0.1)
    assert loss.item() == pytest.approx(-(sharp * log).sum(-1).mean(), rel=1e-4)


def test_targets_depend_on_masked_patches_and_hypotheses_on_visible_ones() -> None:
    module, (spectra, order) = predictor(), batch(1)
    before = module(spectra, order)
    visible, masked = divmod(int(order[0, 0]), 4), divmod(int(order[0, -1]), 4)
    for row, column, changes in ((*visible, "hypotheses"), (*masked, "target")):
        changed = spectra.clone()
        changed[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1
        after = module(changed, order)
        differs = {name: not torch.equal(getattr(before, name), getattr(after, name)) for name in before._fields[:2]}
        assert differs == {"hypotheses": changes == "hypotheses", "target": changes == "target"}
    assert before.target.shape == (1, 14, 24)  # of 20 patches, 0.7 are masked


def test_targets_have_no_gradient() -> None:
    module, inputs = predictor(), batch()
    output = module(*inputs)
    assert output.hypotheses.requires_grad
    assert not output.target.requires_grad
    assert not output.class_target.requires_grad


def test_teachers_follow_the_students() -> None:
    module = predictor()
    teacher, student = module.teacher.norm.weight, module.encoder.student_encoder.norm.weight
    torch.nn.init.constant_(student, 3.0)
    module.begin_step(0)
    assert teacher.mean().item() == 1.0
    module.begin_step(5)  # the decay is half-way between 0.9 and 0.99
    assert teacher.mean().item() == pytest.approx(1 * 0.945 + 3 * 0.055)


def test_schedules_reach_their_ends() -> None:
    first, last = schedules(CONFIG, 0), schedules(CONFIG, 10)
    assert first == (0.04, 0.1, 0.9, 0.5)
    assert last == (pytest.approx(0.04 + 0.03 * 10 / 9827), pytest.approx(0.1 * 0.99997**10), 0.99, 1.0)


def test_center_is_that_of_the_first_microbatch() -> None:
    """Whichever worker has the others: the centre moves between steps, by the mean of the step's first microbatch."""
    spectra = np.random.default_rng(0).normal(size=(8, 2, 80, 70)).astype(np.float16)
    torch.manual_seed(0)
    task = MaskedPredictionTask(AudioEncoder(SHAPE), CONFIG, spectra, spectra, batch_size=2, seed=0)
    centers = []
    for part in (0, 1):
        task.loss(task.module, task.batch(0, part, 2), 0)
        centers.append(task.module.next_center.clone())
    output = task.module(*task.batch(0, 0, 2))
    mean = class_probabilities(output.class_target, torch.zeros(16), 0.04).mean((0, 1))
    torch.testing.assert_close(centers[0], 0.1 * mean)
    assert torch.equal(centers[0], centers[1])
    assert not task.module.center.any()
    task.loss(task.module, task.batch(1, 0, 2), 1)
    assert torch.equal(task.module.center, centers[1])


def test_training_lowers_the_held_out_loss() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4, 2, 80, 64))
    spectra = (base[rng.integers(0, 4, 16)] + 0.1 * rng.normal(size=(16, 2, 80, 64))).astype(np.float16)
    torch.manual_seed(0)
    task = MaskedPredictionTask(AudioEncoder(SHAPE), CONFIG, spectra, spectra[:4], batch_size=8, seed=0)
    optimizer = torch.optim.AdamW([p for p in task.module.parameters() if p.requires_grad], lr=3e-3)
    with torch.no_grad():
        before = task.validate(task.module)
    for step in range(10):
        loss, _ = task.loss(task.module, task.batch(step, 0, 1), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = task.validate(task.module)
    assert after["prediction"] < 0.8 * before["prediction"]
    assert after["target_std"] > 0

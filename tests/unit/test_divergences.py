"""Divergences and the objective against float64 NumPy and SciPy, gradients, extremes and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from tinymusician.distill.objective import LossWeights, distillation_loss, mixture
from tinymusician.models.divergences import (
    entropy,
    forward_kl,
    log_mixture,
    mean_over_valid,
    mean_per_codebook,
    on_logits,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
)

SKEW = 0.1
NAMED = {
    "forward": LossWeights(1, 0),
    "reverse": LossWeights(0, 1),
    "skew_forward": LossWeights(0, 0, 1, 0, SKEW),
    "skew_reverse": LossWeights(0, 0, 0, 1, SKEW),
}


def reference(name: str, teacher: np.ndarray, student: np.ndarray, tau: float, skew: float = SKEW) -> np.ndarray:
    """Independent float64 evaluation by probabilities, with SciPy's relative entropy."""
    p = np.exp(log_softmax(teacher.astype(np.float64) / tau, axis=-1))
    q = np.exp(log_softmax(student.astype(np.float64) / tau, axis=-1))
    pairs = {
        "forward": (p, q),
        "reverse": (q, p),
        "skew_forward": (p, skew * p + (1 - skew) * q),
        "skew_reverse": (q, (1 - skew) * p + skew * q),
    }
    return rel_entr(*pairs[name]).sum(-1) * tau**2


def random_logits(
    seed: int, shape: tuple[int, ...] = (2, 4, 7, 33), scale: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, shape).astype(np.float32), rng.normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_agrees_with_float64(name: str, tau: float) -> None:
    teacher, student = random_logits(1)
    mask = np.random.default_rng(2).random(teacher.shape[:-1]) < 0.7
    mine = distillation_loss(*map(torch.from_numpy, (teacher, student, mask)), NAMED[name], tau)
    expected = np.where(mask, reference(name, teacher, student, tau), 0)
    np.testing.assert_allclose(mine.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_temperature_along_the_sequence() -> None:
    teacher, student = random_logits(3)
    tau = torch.linspace(2, 1, 7)
    mine = distillation_loss(
        torch.from_numpy(teacher), torch.from_numpy(student), torch.ones(2, 4, 7) > 0, NAMED["forward"], tau
    )
    for step in range(7):
        expected = reference("forward", teacher[:, :, step], student[:, :, step], float(tau[step]))
        np.testing.assert_allclose(mine[:, :, step].numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "alpha", "weights"),
    [
        ("forward", 0.3, (1, 0, 0, 0)),
        ("reverse", 0.3, (0, 1, 0, 0)),
        ("fixed_bikl", 0.3, (0.7, 0.3, 0, 0)),
        ("bikl", 0.3, (1, 1, 0, 0)),
        ("switched_bikl", 0.3, (0.3, 0.7, 0, 0)),
        ("stage_mixed", 1.0, (0.6, 0, 0.4, 0)),
        ("stage_mixed", 0.0, (0, 0.2, 0, 0.8)),
        ("stage_mixed", 0.25, (0.25 * 0.6, 0.75 * 0.2, 0.25 * 0.4, 0.75 * 0.8)),
    ],
)
def test_six_objectives_equal_plain_sums(name: str, alpha: float, weights: tuple[float, ...]) -> None:
    teacher, student = random_logits(4)
    mine = distillation_loss(
        torch.from_numpy(teacher),
        torch.from_numpy(student),
        torch.ones(2, 4, 7) > 0,
        mixture(name, alpha, weight=0.7, beta=0.6, gamma=0.2, skew=SKEW),  # type: ignore[arg-type]
    )
    expected = sum(w * reference(term, teacher, student, 1.0) for w, term in zip(weights, NAMED, strict=True))
    np.testing.assert_allclose(mine.numpy(), expected, rtol=5e-5, atol=5e-6)


@pytest.mark.parametrize("name", NAMED)
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 4, 9, dtype=torch.float64)
    student = torch.randn(2, 3, 4, 9, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 3, 4) > 0.3

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return on_logits(NAMED[name].divergence(), teacher, logits, mask, 1.7)

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize("name", NAMED)
def test_chunked_loss_has_the_same_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory-saving path against autograd through the plain formula, on more positions than one piece holds."""
    torch.manual_seed(0)
    monkeypatch.setattr("tinymusician.distill.objective._NUMBERS_AT_A_TIME", 800)
    teacher, first = torch.randn(3, 4, 200, 8), torch.randn(3, 4, 200, 8)
    second = first.clone()
    mask = torch.rand(3, 4, 200) > 0.2
    outer = torch.rand(3, 4, 200)
    (distillation_loss(teacher, first.requires_grad_(), mask, NAMED[name], 1.3) * outer).sum().backward()
    (on_logits(NAMED[name].divergence(), teacher, second.requires_grad_(), mask, 1.3) * outer).sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-5, atol=1e-6)


def test_second_backward_is_refused() -> None:
    student = torch.randn(1, 1, 2, 4, requires_grad=True)
    loss = distillation_loss(torch.randn(1, 1, 2, 4), student, torch.ones(1, 1, 2) > 0, NAMED["forward"]).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one pass only"):
        loss.backward()


def test_masked_positions_may_hold_anything() -> None:
    teacher, student = torch.randn(1, 2, 3, 5), torch.randn(1, 2, 3, 5)
    mask = torch.ones(1, 2, 3) > 0
    mask[0, 1, 2] = False
    teacher[0, 1, 2], student[0, 1, 2] = float("nan"), -torch.inf
    student.requires_grad_()
    for weights in NAMED.values():
        values = distillation_loss(teacher, student, mask, weights)
        assert values[0, 1, 2] == 0
        values.sum().backward()
        assert torch.isfinite(values).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad[0, 1, 2] == 0).all()


def test_codes_forbidden_on_both_sides_have_no_divergence() -> None:
    """Logits of -inf that teacher and student share take part with probability 0 and leave gradients finite."""
    teacher, student = random_logits(5, (1, 1, 2, 6))
    teacher[..., 4:] = student[..., 4:] = -np.inf
    logits = torch.from_numpy(student).requires_grad_()
    for name, weights in NAMED.items():
        values = distillation_loss(torch.from_numpy(teacher), logits, torch.ones(1, 1, 2) > 0, weights)
        np.testing.assert_allclose(
            values.detach().numpy(), reference(name, teacher[..., :4], student[..., :4], 1), rtol=1e-4
        )
        values.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def one_hot(place: int) -> torch.Tensor:
    return torch.where(torch.arange(4) == place, 0.0, -torch.inf)


def test_one_hot_distributions() -> None:
    a, b = one_hot(0), one_hot(2)
    assert forward_kl(a, a) == 0
    assert forward_kl(a, b) == math.inf
    assert reverse_kl(a, b) == math.inf
    assert skew_forward_kl(a, b, SKEW) == pytest.approx(-math.log(SKEW))
    assert skew_reverse_kl(a, b, SKEW) == pytest.approx(-math.log(SKEW))
    assert entropy(a) == 0


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 40), skew=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_identities(seed: int, scale: float, skew: float) -> None:
    teacher, student = (
        torch.log_softmax(torch.from_numpy(x).double(), -1) for x in random_logits(seed, (5, 17), scale)
    )
    for divergence in (forward_kl, reverse_kl):
        assert (divergence(teacher, student) >= -1e-12).all()
        torch.testing.assert_close(divergence(teacher, teacher), torch.zeros(5, dtype=torch.float64))
    for skewed in (skew_forward_kl, skew_reverse_kl):
        value = skewed(teacher, student, skew)
        assert (value >= -1e-9).all()
        assert (value <= -math.log(skew) + 1e-9).all()
        torch.testing.assert_close(skewed(teacher, teacher, skew), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(forward_kl(teacher, student), reverse_kl(student, teacher))


def test_skew_zero_is_the_plain_divergence() -> None:
    teacher, student = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in random_logits(7, (5, 17)))
    assert torch.equal(skew_forward_kl(teacher, student, 0.0), forward_kl(teacher, student))
    assert torch.equal(skew_reverse_kl(teacher, student, 0.0), reverse_kl(teacher, student))
    torch.testing.assert_close(
        skew_forward_kl(teacher, student, 1e-9), forward_kl(teacher, student), rtol=1e-6, atol=1e-8
    )


def test_log_mixture_is_the_logarithm_of_the_mixture() -> None:
    a, b = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in random_logits(8, (3, 9)))
    torch.testing.assert_close(log_mixture(a, b, 0.3), torch.log(0.7 * a.exp() + 0.3 * b.exp()))
    assert log_mixture(torch.tensor(-torch.inf), torch.tensor(-torch.inf), 0.3) == -torch.inf


def test_entropy_of_a_uniform_distribution() -> None:
    assert entropy(torch.log_softmax(torch.zeros(8), -1)).item() == pytest.approx(math.log(8))


def test_means_count_valid_positions_only() -> None:
    values = torch.tensor([[[1.0, 2.0, 0.0], [5.0, 0.0, 0.0]]])
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    assert mean_over_valid(values, mask) == pytest.approx(8 / 3)
    assert mean_per_codebook(values, mask).tolist() == [1.5, 5.0]


def test_low_precision_logits_are_compared_in_float32() -> None:
    teacher, student = random_logits(9)
    half = torch.from_numpy(student).bfloat16()
    mine = distillation_loss(torch.from_numpy(teacher), half, torch.ones(2, 4, 7) > 0, NAMED["forward"])
    assert mine.dtype == torch.float32
    np.testing.assert_allclose(
        mine.numpy(), reference("forward", teacher, half.float().numpy(), 1), rtol=2e-5, atol=2e-6
    )

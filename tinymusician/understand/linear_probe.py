"""A linear probe: multinomial logistic regression on frozen features, which shows what an encoder makes readable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_ITERATIONS = 200


@dataclass(frozen=True)
class ProbeResult:
    """The accuracy on test clips, with the penalty that was best on validation clips."""

    accuracy: float
    penalty: float


def probe(
    train: tuple[Floats, Labels],
    validation: tuple[Floats, Labels],
    test: tuple[Floats, Labels],
    penalties: Sequence[float] = PENALTIES,
) -> ProbeResult:
    """Fit on standardized features [N, D] and their classes [N]; clips with a negative class are left out."""
    (x, y), (x_validation, y_validation), (x_test, y_test) = (_labelled(*each) for each in (train, validation, test))
    mean, std = x.mean(0), x.std(0) + 1e-6
    classes = int(max(y.max(), y_validation.max(), y_test.max())) + 1
    scaled = torch.from_numpy((x - mean) / std)
    best = ProbeResult(0.0, penalties[0])
    best_validation = -1.0
    for penalty in penalties:
        weights = _fit(scaled, torch.from_numpy(y), classes, penalty)
        accuracy = _accuracy(weights, (x_validation - mean) / std, y_validation)
        if accuracy > best_validation:
            best_validation = accuracy
            best = ProbeResult(_accuracy(weights, (x_test - mean) / std, y_test), penalty)
    return best


def majority_accuracy(train_N: Labels, test_N: Labels) -> float:
    """The accuracy of the most frequent training class on test clips; negative classes are left out."""
    frequent = np.bincount(train_N[train_N >= 0]).argmax()
    return float((test_N[test_N >= 0] == frequent).mean())


def _fit(x_ND: torch.Tensor, y_N: torch.Tensor, classes: int, penalty: float) -> torch.Tensor:
    """The weights [D + 1, classes] of least cross-entropy plus `penalty` times half their squares, by L-BFGS."""
    inputs = F.pad(x_ND, (0, 1), value=1.0)
    weights = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weights, y_N) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def _accuracy(weights: torch.Tensor, x_ND: Floats, y_N: Labels) -> float:
    logits = F.pad(torch.from_numpy(x_ND), (0, 1), value=1.0) @ weights
    return float((logits.argmax(1).numpy() == y_N).mean())


def _labelled(x_ND: Floats, y_N: Labels) -> tuple[Floats, Labels]:
    return np.asarray(x_ND[y_N >= 0], np.float32), y_N[y_N >= 0]

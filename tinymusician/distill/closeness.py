"""How close a student's distribution is to its teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinymusician.distill.objective import chunked
from tinymusician.distill.signals import Rows, SignalSource, TeacherSignals
from tinymusician.models.divergences import cross_entropy, entropy, forward_kl, mean_per_codebook


def held_out_closeness(
    source: SignalSource, rows: int, batch_size: int, student_logits: Callable[[TeacherSignals], Tensor]
) -> dict[str, float]:
    """The means of `closeness` over all `rows` of a signal source."""
    totals: dict[str, float] = {}
    for batch, signals in _signals_by_batch(source, rows, batch_size):
        metrics = closeness(signals.logits, student_logits(signals), signals.sequences.mask)
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value.item() * len(batch) / rows
    return totals


@torch.no_grad()
def held_out_kl(
    source: SignalSource, rows: int, batch_size: int, student_logits: Callable[[TeacherSignals], Tensor]
) -> npt.NDArray[np.float64]:
    """The forward KL of every sequence of a signal source, [rows], in nats per code.

    It is the mean over the codebooks, and over the rows with and without text if the source has both.
    """
    kl = []
    for batch, signals in _signals_by_batch(source, rows, batch_size):
        mask_RKS = signals.sequences.mask
        kl_RKS = chunked(forward_kl, signals.logits, student_logits(signals), mask_RKS)
        kl_RK = kl_RKS.sum(2) / mask_RKS.sum(2).clamp(min=1)
        kl += kl_RK.mean(1).reshape(-1, len(batch)).mean(0).tolist()
    return np.asarray(kl)


@torch.no_grad()
def closeness(teacher_RKSV: Tensor, student_RKSV: Tensor, mask_RKS: Tensor) -> dict[str, Tensor]:
    """The student's distance from the teacher at τ = 1, by codebook and on average, in nats per code.

    `kl` is forward; `agreement` the share of equal most likely codes; `entropy` that of the student; `cross_entropy`
    that of the student's next codes under the teacher, in the context of the given sequences.
    """
    kl = chunked(forward_kl, teacher_RKSV, student_RKSV, mask_RKS)
    same = (teacher_RKSV.argmax(-1) == student_RKSV.argmax(-1)) & mask_RKS
    uncertainty = chunked(lambda _, log_q: entropy(log_q), teacher_RKSV, student_RKSV, mask_RKS)
    nll = chunked(cross_entropy, teacher_RKSV, student_RKSV, mask_RKS)
    measurements = {"kl": kl, "agreement": same.float(), "entropy": uncertainty, "cross_entropy": nll}
    metrics = {}
    for name, values in measurements.items():
        by_codebook = mean_per_codebook(values, mask_RKS)
        metrics[name] = by_codebook.mean()
        metrics |= {f"{name}/{k + 1}": value for k, value in enumerate(by_codebook)}
    return metrics


def _signals_by_batch(source: SignalSource, rows: int, size: int) -> Iterator[tuple[Rows, TeacherSignals]]:
    """All rows of a source in order, `size` at a time; the source is told the next batches."""
    batches = [np.arange(start, min(start + size, rows)) for start in range(0, rows, size)]
    for index, batch in enumerate(batches):
        yield batch, source(batch, batches[index + 1 : index + 1 + source.prefetch])

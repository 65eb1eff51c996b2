"""Top-k shards: the KL from the teacher's distribution to what is read back, and bytes.

    python benchmarks/shards.py [--clips 32] [--seconds 5]

For every n: `kl_N`, forward KL in nats per code from the whole distribution (float32) to the one that is read, along
band-large's own samples for validation captions, with and without text; `kl_tau2_N`, the same at temperature 2;
`kl_played_N`, between what is left of both at the band's own top-k 64 and temperature 0.7 (for N above 64); `rest_N`,
the mass that is spread; and `bytes_N`, bytes a position. `all` keeps every code.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.band import GUIDANCE, TEMPERATURE, TOP_K, sample_band_large
from benchmarks.report import report
from tinymusician.distill.cached import pack, unpack
from tinymusician.distill.signals import OnlineTeacher
from tinymusician.models.divergences import forward_kl

SPARSE_TOP_K = (1, 4, 16, 32, 64, 128, 256, None)


def played(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities that codes are drawn from: the TOP_K largest of softmax(z / TEMPERATURE)."""
    least = logits.topk(TOP_K, dim=-1).values[..., -1:]
    return (logits / TEMPERATURE).masked_fill(logits < least, -torch.inf).log_softmax(-1)


def main() -> None:
    """Measure every n on the same positions."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clips", type=int, default=32)
    options.add_argument("--seconds", type=float, default=5.0)
    chosen = options.parse_args()
    teacher, tokens = sample_band_large("validation", chosen.clips, round(chosen.seconds * 50), seed=0)
    source = OnlineTeacher(teacher, tokens, "conditional", GUIDANCE, torch.float32)
    totals: dict[str, list[float]] = {}
    for row in range(len(tokens.codes)):
        signals = source(np.array([row]))
        whole = signals.logits[signals.sequences.mask].float()
        for count in SPARSE_TOP_K:
            packed_logits = pack(whole, count)
            read = unpack(
                {name: torch.from_numpy(array) for name, array in packed_logits.items()}, whole.shape[-1]
            ).float()
            name = "all" if count is None else str(count)
            log_p, log_q = whole.log_softmax(-1), read.log_softmax(-1)
            result = {
                f"kl_{name}": forward_kl(log_p, log_q),
                f"kl_tau2_{name}": forward_kl((whole / 2).log_softmax(-1), (read / 2).log_softmax(-1)),
                f"bytes_{name}": torch.tensor(
                    float(sum(array.nbytes for array in packed_logits.values())) / len(whole)
                ),
            }
            if count is None or count > TOP_K:
                result[f"kl_played_{name}"] = forward_kl(played(whole), played(read))
            if count is not None:
                result[f"rest_{name}"] = 1 - log_p.exp().topk(count, dim=-1).values.sum(-1)
            for key, value in result.items():
                totals.setdefault(key, []).append(value.double().mean().item())
    figures = {key: float(np.mean(values)) for key, values in totals.items()}
    report("shards", figures, {"clips": len(tokens.codes), "seconds": chosen.seconds})


if __name__ == "__main__":
    main()

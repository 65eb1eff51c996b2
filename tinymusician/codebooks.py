"""The delay pattern: K codebooks per frame as one sequence (MusicGen, arXiv 2306.05284, section 2.2).

Codebook k lags k steps behind codebook 0, so T frames take S = T + K - 1 steps. Positions outside a codebook's T steps
contain the pad id, which is the size of the vocabulary. NumPy only: training and the engine share this file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def delay(codes_BKT: Codes, pad: int) -> Codes:
    """Arrange codes [B, K, T] in the delay pattern: [B, K, T + K - 1], with `pad` where a codebook has no code."""
    batch, num_codebooks, frames = codes_BKT.shape
    delayed = np.full((batch, num_codebooks, frames + num_codebooks - 1), pad, codes_BKT.dtype)
    for k in range(num_codebooks):
        delayed[:, k, k : k + frames] = codes_BKT[:, k]
    return delayed


def undelay(delayed_BKS: Codes) -> Codes:
    """The inverse of `delay`: [B, K, S] to [B, K, S - K + 1]."""
    _, num_codebooks, steps = delayed_BKS.shape
    frames = steps - num_codebooks + 1
    if frames < 1:
        raise ValueError(f"delayed codes have {steps} steps; {num_codebooks} codebooks need at least {num_codebooks}")
    return np.stack([delayed_BKS[:, k, k : k + frames] for k in range(num_codebooks)], axis=1)


def valid(num_codebooks: int, frames: int) -> Mask:
    """The (codebook, step) pairs of the delay pattern that carry a code: [K, T + K - 1], K·T of them true."""
    step = np.arange(frames + num_codebooks - 1)[None]
    book = np.arange(num_codebooks)[:, None]
    return (step >= book) & (step < book + frames)


def inputs_for(delayed_BKS: Codes, pad: int) -> Codes:
    """The decoder's inputs for predicting `delayed_BKS`: the same sequence, one step later, after a column of `pad`."""
    shifted = np.full_like(delayed_BKS, pad)
    shifted[..., 1:] = delayed_BKS[..., :-1]
    return shifted

"""The CLAP score: how near a clip lies to its prompt in the space that CLAP puts both into.

A clip's score is the mean cosine of its windows' embeddings with its prompt's (Wu et al., arXiv 2211.06687). Windows
are fixed: laion-clap's own cut is at random, and its scores do not reproduce. A score by itself says nothing; that of
shuffled prompts stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import Interval, mean_interval
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats


@dataclass(frozen=True)
class ClapScore:
    """The score, that of clips with the prompts of others, and how often a shuffle scores as high (`p_shuffled`).

    `by_clip` [N] are the clips' own scores. Without two different prompts nothing can be shuffled.
    """

    score: Interval
    shuffled: float | None
    p_shuffled: float | None
    by_clip: npt.NDArray[np.float64]

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"score": self.score.facts(), "shuffled": self.shuffled, "p_shuffled": self.p_shuffled}


def clap_score(clips: ClipEmbeddings, prompts_ND: Floats, seed: int = 0, shuffles: int = 1000) -> ClapScore:
    """The score of clips against one embedded prompt each.

    Raises:
        DataError: not one prompt a clip, or another dimension.
    """
    if prompts_ND.shape != (clips.clips, clips.dimension):
        raise DataError(
            f"CLAP score: {clips.clips} clips in {clips.dimension} dimensions and prompts {prompts_ND.shape}; "
            f"one prompt a clip is needed"
        )
    likeness = _likeness(clips, prompts_ND)
    matched = np.diagonal(likeness).copy()
    _, kinds = np.unique(prompts_ND, axis=0, return_inverse=True)
    other = kinds[:, None] != kinds
    if not other.any():
        return ClapScore(mean_interval(matched, seed), None, None, matched)
    random, indices = np.random.default_rng(seed), np.arange(clips.clips)
    shuffled = [likeness[indices, random.permutation(indices)].mean() for _ in range(shuffles)]
    as_high = (1 + int(np.sum(np.array(shuffled) >= matched.mean()))) / (1 + shuffles)
    return ClapScore(mean_interval(matched, seed), float(likeness[other].mean()), as_high, matched)


def _likeness(clips: ClipEmbeddings, prompts_ND: Floats) -> npt.NDArray[np.float64]:
    """The mean cosine of every clip's windows with every prompt, [N, N]."""
    cosines = _unit(clips.values) @ _unit(prompts_ND).T
    summed = np.zeros((clips.clips, len(prompts_ND)))
    np.add.at(summed, clips.owners, cosines)
    return np.asarray(summed / clips.windows[:, None])


def _unit(values: Floats) -> Floats:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))

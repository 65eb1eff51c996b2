"""The CLAP score: the cosine between a clip and its prompt in CLAP's joint embedding space.

A clip's score is the mean cosine of its windows' embeddings with its prompt's embedding (Wu et al., arXiv 2211.06687).
Windows are fixed: laion-clap crops at random, so its scores do not reproduce. A score is meaningful only beside the
score of shuffled prompts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinymusician.errors import DataError
from tinymusician.evaluate.bootstrap import mean_interval
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats
from tinymusician.evaluate.results import ClapScore


def clap_by_clip(clips: ClipEmbeddings, prompts_ND: Floats) -> npt.NDArray[np.float64]:
    """Each clip's score with its own prompt, [N].

    Raises:
        DataError: the number of prompts or their dimension differs from that of the clips.
    """
    return np.diagonal(_cosines(clips, prompts_ND)).copy()


def clap_score(clips: ClipEmbeddings, prompts_ND: Floats, seed: int = 0, shuffles: int = 1000) -> ClapScore:
    """The score of clips with one embedded prompt each.

    Raises:
        DataError: the number of prompts or their dimension differs from that of the clips.
    """
    cosines = _cosines(clips, prompts_ND)
    matched = np.diagonal(cosines)
    _, kinds = np.unique(prompts_ND, axis=0, return_inverse=True)
    other = kinds[:, None] != kinds
    score = mean_interval(matched, seed)
    if not other.any():
        return ClapScore(score=score)
    random, indices = np.random.default_rng(seed), np.arange(clips.clips)
    shuffled = [cosines[indices, random.permutation(indices)].mean() for _ in range(shuffles)]
    as_high = (1 + int(np.sum(np.array(shuffled) >= matched.mean()))) / (1 + shuffles)
    return ClapScore(score=score, shuffled=float(cosines[other].mean()), p_shuffled=as_high)


def _cosines(clips: ClipEmbeddings, prompts_ND: Floats) -> npt.NDArray[np.float64]:
    """The mean cosine of every clip's windows with every prompt, [N, N]."""
    if prompts_ND.shape != (clips.clips, clips.dimension):
        raise DataError(
            f"CLAP score: {clips.clips} clips in {clips.dimension} dimensions and prompts {prompts_ND.shape}; "
            f"one prompt a clip is needed"
        )
    cosines = _unit(clips.values) @ _unit(prompts_ND).T
    summed = np.zeros((clips.clips, len(prompts_ND)))
    np.add.at(summed, clips.owners, cosines)
    return np.asarray(summed / clips.windows[:, None])


def _unit(values: Floats) -> Floats:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))

"""Classifier-free guidance and sampling, shared by the engine and by training.

Shapes: K codebooks, V vocabulary; leading axes are arbitrary. The order is that of transformers' logits processors:
temperature, top-k, top-p. One uniform number determines one code, so equal random numbers give equal codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeVar

import numpy as np
import numpy.typing as npt

from tinymusician.errors import RequestError
from tinymusician.runtime.softmax import softmax

Array = TypeVar("Array", bound=Any)
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters. `top_k` 0 and `top_p` 1 disable the filters; temperature 0 is greedy.

    Raises:
        RequestError: a value is not allowed, or of another type.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, lambda t: t == 0 or 0.01 <= t <= 100, "0 (greedy), or 0.01 to 100")
        check_integer("top_k", self.top_k, "0 (all codes) or more")
        check_real("top_p", self.top_p, lambda p: 0 < p <= 1, "more than 0 and at most 1")


def check_real(field: str, value: object, is_allowed: Callable[[float], bool], allowed: str) -> None:
    """Check a number of a request; NaN is in no range.

    Raises:
        RequestError: it is not a number, or not allowed.
    """
    if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not _is_in(value, is_allowed):
        raise RequestError(f"{field} {_shown(value)}: {allowed} is allowed", field)


def check_integer(field: str, value: object, allowed: str) -> None:
    """Check a natural number of a request.

    Raises:
        RequestError: it is not an integer, or negative.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
        raise RequestError(f"{field} {_shown(value)}: {allowed} is allowed", field)


def _is_in(value: SupportsFloat, is_allowed: Callable[[float], bool]) -> bool:
    try:
        return is_allowed(float(value))
    except (OverflowError, TypeError):  # an integer beyond every float, a complex number
        return False


def _shown(value: object) -> str:
    try:
        return f"{value:g}" if isinstance(value, float | int) else repr(value)
    except OverflowError:  # an integer beyond every float
        return "beyond 1e308"


def guide(conditional: Array, unconditional: Array, scale: float | Array) -> Array:
    """Classifier-free guidance on logits: z_u + s·(z_c - z_u) (arXiv 2207.12598, in MusicGen's form).

    `scale` is a number, or an array that broadcasts, such as one per row.
    """
    guided: Array = unconditional + scale * (conditional - unconditional)
    return guided


def random_stream(seed: int, window: int = 0) -> np.random.Generator:
    """The random number generator of a seed and window: Philox, jumped once per window."""
    return np.random.Generator(np.random.Philox(seed).jumped(window))


def draw(logits: Logits, uniforms: npt.NDArray[np.float64], sampling: SamplingParams) -> npt.NDArray[np.int64]:
    """Sample a code from each row of `logits` [..., V] by inverse transform of `uniforms` [...] in [0, 1)."""
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(-1))
    cumulative = np.cumsum(probabilities(logits, sampling), axis=-1)
    codes = (cumulative <= uniforms[..., None] * cumulative[..., -1:]).sum(-1)
    return np.asarray(np.minimum(codes, logits.shape[-1] - 1))


def probabilities(logits: Logits, sampling: SamplingParams) -> npt.NDArray[np.float64]:
    """The distribution that `draw` samples from, [..., V], float64."""
    scores = logits.astype(np.float64) / sampling.temperature
    size = scores.shape[-1]
    if 0 < sampling.top_k < size:
        threshold = np.partition(scores, size - sampling.top_k, axis=-1)[..., size - sampling.top_k, None]
        scores = np.where(scores < threshold, -np.inf, scores)
    if sampling.top_p < 1:
        scores = np.where(_in_nucleus(softmax(scores), sampling.top_p), scores, -np.inf)
    return softmax(scores)


def _in_nucleus(shares: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.bool_]:
    """Nucleus filter (arXiv 1904.09751): the most likely codes with total probability `top_p`, at least one."""
    order = np.argsort(shares, axis=-1, kind="stable")
    below = np.cumsum(np.take_along_axis(shares, order, -1), axis=-1) <= 1 - top_p
    below[..., -1] = False
    outside = np.zeros_like(below)
    np.put_along_axis(outside, order, below, -1)
    return ~outside

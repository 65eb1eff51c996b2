"""The names that audiocraft imports."""

from __future__ import annotations

from torch import unbind as unbind


class LowerTriangularMask:
    """Named in a type check only."""


def memory_efficient_attention(*_: object, **__: object) -> None:
    """Never asked for."""
    raise RuntimeError("xformers is not installed")

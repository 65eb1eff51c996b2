"""Groups tunes into families of settings of one tune: by title, and by common melody in any key.

A collection prints a tune under several names, and several collections print the same one; all of them must be in one
split, or a model is tested on its training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

SHARED_INTERVALS = 16
"""Two tunes with this many equal intervals in a row are settings of one tune."""


def families(titles: Sequence[str], melodies: Sequence[Sequence[int]]) -> list[int]:
    """For each tune the index of the first tune of its family; families are transitive.

    `titles` are compared for equality, `melodies` (MIDI pitches) by runs of `SHARED_INTERVALS` equal intervals. Runs
    that only alternate between two steps are too common to count.
    """
    first_of = list(range(len(titles)))

    def head(index: int) -> int:
        while first_of[index] != index:
            first_of[index] = first_of[first_of[index]]
            index = first_of[index]
        return index

    seen: dict[str | tuple[int, ...], int] = {}
    for index, (title, melody) in enumerate(zip(titles, melodies, strict=True)):
        marks: list[str | tuple[int, ...]] = [title, *_runs(melody)]
        for mark in marks:
            one, other = sorted((head(seen.setdefault(mark, index)), head(index)))
            first_of[other] = one
    return [head(index) for index in range(len(titles))]


def _runs(melody: Sequence[int]) -> set[tuple[int, ...]]:
    steps = [after - before for before, after in pairwise(melody)]
    runs = {tuple(steps[at : at + SHARED_INTERVALS]) for at in range(len(steps) - SHARED_INTERVALS + 1)}
    return {run for run in runs if len(set(run)) > 2}

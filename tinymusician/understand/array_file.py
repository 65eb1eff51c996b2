"""Large arrays that are computed once on each machine, and then mapped into the memory of every process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.float16]
ProgressCallback = Callable[[int, int], None]
"""Called with the rows that are done, and their number in all."""
_ROWS_AT_ONCE = 50


def load_or_compute(
    path: Path,
    shape: tuple[int, ...],
    compute: Callable[[slice], npt.NDArray[np.floating]],
    on_progress: ProgressCallback = lambda done, total: None,
) -> Halves:
    """The array in a file; if it is missing, one process computes it, some rows at a time, and others wait.

    A process that is killed leaves a draft, which the next one overwrites.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            draft = path.with_name(f"{path.name}.part")
            array = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
            for start in range(0, shape[0], _ROWS_AT_ONCE):
                rows = slice(start, min(shape[0], start + _ROWS_AT_ONCE))
                array[rows] = compute(rows).astype(np.float16)
                on_progress(rows.stop, shape[0])
            array.flush()
            os.replace(draft, path)
    return np.asarray(np.load(path, mmap_mode="r"))

"""Large arrays that are computed once on each machine, and then mapped into the memory of every process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.float16]


def computed_once(path: Path, shape: tuple[int, ...], fill: Callable[[Halves], None]) -> Halves:
    """The array in a file; if it is missing, one process fills it, and others wait.

    A process that is killed leaves a draft, which the next one overwrites.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            draft = path.with_name(f"{path.name}.part")
            array = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
            fill(array)
            array.flush()
            os.replace(draft, path)
    return np.asarray(np.load(path, mmap_mode="r"))

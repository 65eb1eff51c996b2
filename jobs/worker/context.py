"""What a worker process of a job knows about itself: rank, run, recipe, device, cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from tinymusician.artifacts.authenticated_store import WorkingKeys, working_keys
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import RunRecord, RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.recipe import Recipe, parse_recipe
from tinymusician.user_folders import user_folder


@dataclass(frozen=True)
class WorkerContext:
    """A worker of a run: its rank among `world` workers, and its device (`cuda` or `cpu`).

    `record_sha256` is the digest of the record that its driver read, and `working_keys` authenticate working files, if
    the driver has them.
    """

    store_url: str
    run_id: str
    rank: int
    world: int
    device: str
    record_sha256: str | None = None
    working_keys: WorkingKeys | None = field(default=None, repr=False)

    @classmethod
    def of_run(cls, run: RunStore, rank: int, world: int, device: str) -> WorkerContext:
        """A worker of the run that a driver has opened."""
        return cls(run.store.url, run.id, rank, world, device, run.record_sha256, working_keys(run.store))

    @cached_property
    def run(self) -> RunStore:
        """The run's folder in the store."""
        run = RunStore(open_store(self.store_url), self.run_id, record_sha256=self.record_sha256)
        return run.authenticated(self.working_keys)

    @cached_property
    def record(self) -> RunRecord:
        """The run's record: recipe, workers, versions."""
        return self.run.record()

    @cached_property
    def recipe(self) -> Recipe:
        """The run's resolved recipe."""
        return parse_recipe(self.record.recipe, self.run_id)

    @property
    def cache(self) -> Path:
        """A folder of this machine that outlives the run."""
        folder = user_folder("cache")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def threads(self) -> int:
        """The number of CPUs that Ray assigned to this worker; 0, which means all, outside of Ray."""
        return int(os.environ.get("OMP_NUM_THREADS", "0"))

    def precision(self) -> Literal["float32", "bfloat16"]:
        """The recipe's precision; `auto` is bfloat16 on a GPU that supports it, otherwise float32."""
        import torch

        requested = self.recipe.training.precision
        if requested != "auto":
            return requested
        return "bfloat16" if self.device == "cuda" and torch.cuda.is_bf16_supported() else "float32"

    def barrier(self) -> None:
        """Wait until every worker has called this."""
        import torch.distributed as dist

        if self.world > 1:
            dist.barrier()


Work = Callable[[WorkerContext], None]
"""A function that runs on every worker."""
Finish = Callable[[WorkerContext], RunResult]
"""A function that runs on one worker when all work is done."""

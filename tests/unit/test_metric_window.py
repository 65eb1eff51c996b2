"""The means of a log row: over steps, microbatches and workers that have a scalar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, tensor

from tinymusician.training.loop import MetricWindow


def test_a_scalar_of_some_microbatches_is_their_mean() -> None:
    window = MetricWindow()
    window.add({"loss": tensor(1.0), "rare": tensor(5.0)}, 0.5)
    window.add({"loss": tensor(3.0)}, 0.5)
    window.close(2.0, 0.1)
    window.add({"loss": tensor(5.0)}, 1.0)
    window.close(4.0, 0.2)
    row = window.means(1)
    assert (row["loss"], row["rare"]) == (pytest.approx(3.5), pytest.approx(5.0))
    assert (row["gradient_norm"], row["learning_rate"]) == (3.0, 0.2)


def reduce(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    window = MetricWindow()
    scalars = {"loss": torch.tensor(float(rank)), f"only {rank}": torch.tensor(7.0 + rank)}
    window.add(scalars, 1.0)
    window.close(1.0, 0.1)
    row = window.means(2)
    Path(folder, f"{rank}.json").write_text(json.dumps({name: row[name] for name in ("loss", "only 0", "only 1")}))
    dist.destroy_process_group()


@pytest.mark.slow
def test_workers_with_other_scalars_agree(tmp_path: Path) -> None:
    """One worker's clips have an attribute that those of the other lack."""
    multiprocessing.spawn(reduce, (str(tmp_path),), nprocs=2)
    rows = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert rows[0] == rows[1] == {"loss": 0.5, "only 0": 7.0, "only 1": 8.0}

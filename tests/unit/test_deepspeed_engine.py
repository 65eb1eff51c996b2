"""DeepSpeed's engine: every ZeRO stage is plain AdamW, and resumes exactly from the shards of its workers."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.s3_server import free_port
from tests.unit.test_training import ROWS, SETTINGS, Regression, latest
from tinymusician.artifacts.store import LocalStore
from tinymusician.training.checkpoint import CheckpointManager
from tinymusician.training.engine import full_state
from tinymusician.training.torch_engine import TorchEngine


def deepspeed_worker(rank: int, world: int, port: int, zero: int, precision: str, out: str) -> None:
    """Train 12 steps; at step 6 throw the engine away and go on with a new one made from its state."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ["XDG_CACHE_HOME"] = str(Path(out).parent / "cache")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    from tinymusician.training.deepspeed_engine import DeepSpeedEngine

    def new(state: Any) -> tuple[Any, Any]:
        task = Regression()
        return task, DeepSpeedEngine(task.module, SETTINGS, ROWS // world, zero, precision, state)  # type: ignore[arg-type]

    def steps(task: Any, engine: Any, first: int, last: int) -> list[tuple[float, float]]:
        result = []
        for step in range(first, last):
            with engine.autocast():
                loss, _ = task.loss(engine, task.batch(step, rank, world), step)
            norm = engine.step(loss, 0.05)
            total = loss.detach().clone()
            torch.distributed.all_reduce(total)
            result.append((total.item() / world, norm))
        return result

    def dtype_where_gpus_are(engine: Any) -> str:
        """What the products come in, where torch answers DeepSpeed as it does within an autocast of a GPU."""
        inputs, default_dtype = (
            torch.zeros(2, 7, dtype=next(engine._module.parameters()).dtype),
            torch.is_autocast_enabled,
        )
        with (
            engine.autocast(),
            patch.object(torch, "is_autocast_enabled", lambda *of: default_dtype(*of) if of else True),
        ):
            return str(engine(inputs).dtype)

    task, engine = new(None)
    begun = full_state(engine, rank == 0).weights
    dtype = dtype_where_gpus_are(engine)
    first = steps(task, engine, 0, 6)
    state = full_state(engine, rank == 0)
    checkpoints = CheckpointManager(LocalStore(Path(out).parent / "store"), "checkpoints", "error", rank, world)
    checkpoints.save(engine, 6, {})
    straight = steps(task, engine, 6, 12)  # while the checkpoint is written
    checkpoints.drain()
    torch.distributed.barrier()
    resumed = steps(*new(latest(checkpoints).state), 6, 12)
    if rank == 0:
        snapshots = ({name: value.tolist() for name, value in weights.items()} for weights in (begun, state.weights))
        result = dict(zip(("begun", "weights"), snapshots, strict=True), dtype=dtype)
        result |= {"first": first, "straight": straight, "resumed": resumed}
        Path(out).write_text(json.dumps(result))
    else:
        assert not state.weights, "this worker did not ask for the state"
        assert not state.moments
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # without gloo's destructors: in one process of ten they end with "terminate called"


def deepspeed_run(tmp_path: Path, world: int, zero: int, precision: str) -> dict[str, Any]:
    port, out = free_port(), str(tmp_path / "result.json")
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=deepspeed_worker, args=(rank, world, port, zero, precision, out))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * world
    result: dict[str, Any] = json.loads(Path(out).read_text())
    return result


def torch_run() -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    task = Regression()
    engine = TorchEngine(task.module, SETTINGS)
    result, weights = [], {}
    for step in range(12):
        if step == 6:
            weights = full_state(engine).weights
        loss, _ = task.loss(engine, task.batch(step, 0, 1), step)
        result.append((loss.item(), engine.step(loss, 0.05)))
    return result, weights


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_zero_stage_on_two_workers_is_plain_adamw(tmp_path: Path, zero: int) -> None:
    """Losses, gradient norms and weights of 2 workers equal one process on the whole batch; so does a resumed run."""
    mine = deepspeed_run(tmp_path, 2, zero, "float32")
    expected, weights = torch_run()
    torch.testing.assert_close(
        torch.tensor(mine["first"] + mine["straight"]), torch.tensor(expected), rtol=1e-4, atol=1e-5
    )
    assert mine["resumed"] == mine["straight"]
    assert set(mine["weights"]) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(torch.tensor(mine["weights"][name]), value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_bfloat16_resumes_exactly_and_stays_near(tmp_path: Path, zero: int) -> None:
    mine = deepspeed_run(tmp_path, 1, zero, "bfloat16")
    expected, _ = torch_run()
    assert mine["resumed"] == mine["straight"]
    assert mine["dtype"] == "torch.bfloat16"
    trained = ((name, value) for name, value in Regression().module.named_parameters() if value.requires_grad)
    for name, value in trained:
        assert torch.equal(torch.tensor(mine["begun"][name]), value), "it begins with what was given, not rounded"
    near = torch.tensor(mine["first"])[:, 0]
    torch.testing.assert_close(near, torch.tensor(expected[:6])[:, 0], rtol=0.03, atol=0.01)

"""Checkpoints are written beside the training: in shards, by a format's rules, valid when their entry is there."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from jobs.worker.context import WorkerContext
from jobs.worker.ended_training import best_checkpoint, history_of, write_history
from tests.unit.test_training import SETTINGS, Regression, latest, losses, plan, run, shard_key
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.s3 import MAX_PARTS, PART_BYTES, S3Store, part_bytes
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import DigestMismatchError, NotFoundError, RunError, StoreError
from tinymusician.training.checkpoint import CheckpointManager
from tinymusician.training.checkpoint_shards import ShardBuffer, StoredTensors, partition
from tinymusician.training.engine import TensorSpec, full_state
from tinymusician.training.history import TrainingHistory
from tinymusician.training.loop import Trainer
from tinymusician.training.metrics import MetricsLog, read_metrics
from tinymusician.training.torch_engine import TorchEngine


@pytest.fixture(autouse=True)
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


SPECS = [
    TensorSpec("weights/a", (3, 5), torch.float32),
    TensorSpec("weights/flag", (3,), torch.bool),
    TensorSpec("weights/count", (), torch.int64),
    TensorSpec("weights/half", (7,), torch.bfloat16),
    TensorSpec("moments/exp_avg/a", (3, 5), torch.float32),
]


class TestShards:
    @pytest.mark.parametrize("world", [1, 2, 3, 8])
    def test_partition(self, world: int) -> None:
        """Every tensor once and in order; no shard exceeds its share by more than the largest tensor."""
        generator = torch.Generator().manual_seed(world)
        sizes = torch.randint(1, 1000, (50,), generator=generator).tolist()
        specs = [TensorSpec(str(index), (size,), torch.float32) for index, size in enumerate(sizes)]
        shards = partition(specs, world)
        assert [spec for shard in shards for spec in shard] == specs
        assert max(sum(spec.nbytes for spec in shard) for shard in shards) <= 4 * (sum(sizes) / world + max(sizes))

    def test_a_buffer_is_a_safetensors_file(self, tmp_path: Path) -> None:
        """As the safetensors library reads it, with tensors of several types."""
        buffer = ShardBuffer(SPECS)
        generator = torch.Generator().manual_seed(0)
        values = {spec.name: (100 * torch.randn(spec.shape, generator=generator)).to(spec.dtype) for spec in SPECS}
        for name, value in values.items():
            buffer.tensors[name].copy_(value)
        read = load(bytes(buffer.data))
        assert read.keys() == values.keys()
        assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in values.items())
        (tmp_path / "shard").write_bytes(buffer.data)
        stored = StoredTensors([tmp_path / "shard"], "moments/")
        assert list(stored) == ["exp_avg/a"]
        assert torch.equal(stored["exp_avg/a"], values["moments/exp_avg/a"])

    def test_an_empty_shard(self) -> None:
        assert load(bytes(ShardBuffer([]).data)) == {}


class SlowStore(LocalStore):
    """Shards wait for permission to be written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.permission, self.has_begun = threading.Event(), threading.Event()

    def put(self, key: str, data: bytes | memoryview) -> None:
        if key.endswith(".safetensors"):
            self.has_begun.set()
            assert self.permission.wait(60)
        super().put(key, data)


class TestBackground:
    def test_steps_go_on_and_do_not_change_what_is_written(self, tmp_path: Path) -> None:
        store, task = SlowStore(tmp_path), Regression()
        engine, checkpoints = TorchEngine(task.module, SETTINGS), CheckpointManager(store, "checkpoints", "error")
        engine.step(task.loss(engine, task.batch(0, 0, 1), 0)[0], 0.05)
        expected = full_state(engine)
        checkpoints.save(engine, 1, {"error": 0.5})
        assert store.has_begun.wait(60)
        for step in range(1, 4):
            engine.step(task.loss(engine, task.batch(step, 0, 1), step)[0], 0.05)
        assert checkpoints.is_writing
        assert checkpoints.steps() == []
        store.permission.set()
        checkpoints.drain()
        saved = latest(checkpoints)
        assert (saved.step, saved.state.updates, saved.metrics) == (1, 1, {"error": 0.5})
        for name, value in expected.weights.items():
            assert torch.equal(saved.state.weights[name], value)
        for name, value in expected.moments.items():
            assert torch.equal(saved.state.moments[name], value)
        assert not torch.equal(full_state(engine).weights["first.weight"], expected.weights["first.weight"])

    def test_a_write_that_fails_ends_the_training(self, tmp_path: Path) -> None:
        class Full(LocalStore):
            def put(self, key: str, data: bytes | memoryview) -> None:
                if "/step-00000004/" in key:
                    raise StoreError("the disk is full")
                super().put(key, data)

        store, task = Full(tmp_path), Regression()
        checkpoints = CheckpointManager(store, "checkpoints", "error")
        trainer = Trainer(task, TorchEngine(task.module, SETTINGS), plan(), MetricsLog(store, "m", -1), checkpoints)
        with pytest.raises(StoreError, match="the disk is full"):
            trainer.run()
        assert checkpoints.steps() == [0, 2], "the ones before it are as good as they were"

    def test_by_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log row comes with each, so that a run which continues from there has the same rows."""
        monkeypatch.setattr("tinymusician.training.loop._NOTICE_SECONDS", 0.0)
        calm = losses(run(LocalStore(tmp_path / "calm")))
        store, task = LocalStore(tmp_path / "timed"), Regression()
        config = replace(plan(log_every=5), checkpoint_every=12, validate_every=12, checkpoint_seconds=1e-9)
        checkpoints = CheckpointManager(store, "checkpoints", "error")
        engine = TorchEngine(task.module, SETTINGS)
        heartbeat = lambda step: checkpoints.drain()  # noqa: E731 - so that the next one may begin
        Trainer(task, engine, config, MetricsLog(store, "m", -1), checkpoints, heartbeat=heartbeat).run()
        assert checkpoints.steps()[-2:] == [11, 12]
        assert losses(read_metrics(store, "m")) == pytest.approx(calm)

    def test_shards_of_an_earlier_attempt_are_not_used(self, tmp_path: Path) -> None:
        """A killed worker's files lie under the same step; the entry names the new ones, and the old ones go."""
        store = LocalStore(tmp_path)
        store.put("checkpoints/step-00000002/old-0-of-1.safetensors", b"old")
        store.put("checkpoints/step-00000002/old-0-of-1.json", json.dumps({"size": 3, "sha256": "0" * 64}).encode())
        run(store)
        assert "old" not in shard_key(store, 12)
        assert not [entry.key for entry in store.list("checkpoints/") if "old" in entry.key]

    def test_notes_of_shards_are_no_checkpoints(self, tmp_path: Path) -> None:
        """So a run whose shards are written and never become valid uses up its restarts."""
        run_store = RunStore(LocalStore(tmp_path), "r")
        key = run_store.checkpoints_key("distill")
        run_store.store.put(f"{key}/step-00000002/x-0-of-2.json", b"{}")
        assert run_store.checkpoint_keys() == frozenset()
        run_store.store.put(f"{key}/step-00000002.json", b"{}")
        assert run_store.checkpoint_keys() == {f"{key}/step-00000002.json"}

    @pytest.mark.parametrize("digest", ["../../x", "0" * 63, "G" * 64])
    def test_a_digest_is_no_path(self, tmp_path: Path, digest: str) -> None:
        store = LocalStore(tmp_path / "store")
        run(store)
        entry = json.loads(store.get("checkpoints/step-00000012.json"))
        entry["shards"][0]["sha256"] = digest
        store.put("checkpoints/step-00000012.json", json.dumps(entry).encode())
        with pytest.raises(DigestMismatchError):
            CheckpointManager(store, "checkpoints", "error").latest()

    def test_kill_during_an_upload_leaves_the_previous_one(self, tmp_path: Path) -> None:
        script = (
            "import sys\nfrom pathlib import Path\nfrom tests.unit.test_checkpoints import *\n"
            "store, task = SlowStore(Path(sys.argv[1])), Regression()\n"
            "engine = TorchEngine(task.module, SETTINGS)\n"
            "checkpoints = CheckpointManager(store, 'checkpoints', 'error')\n"
            "store.permission.set()\ncheckpoints.save(engine, 1, {})\ncheckpoints.drain()\nstore.permission.clear()\n"
            "store.has_begun.clear()\nengine.step(task.loss(engine, task.batch(0, 0, 1), 0)[0], 0.05)\n"
            "checkpoints.save(engine, 2, {})\nstore.has_begun.wait()\nprint('begun', flush=True)\ncheckpoints.drain()\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        words = [sys.executable, "-c", script, str(tmp_path / "store")]
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert "begun\n" in iter(process.stdout.readline, "")
            process.send_signal(signal.SIGKILL)
        checkpoints = CheckpointManager(LocalStore(tmp_path / "store"), "checkpoints", "error")
        assert checkpoints.steps() == [1]
        assert all(value.isfinite().all() for value in latest(checkpoints).state.weights.values())


class TestHistory:
    def test_the_lowest_metric_is_the_best(self) -> None:
        history = TrainingHistory()
        for step, value in ((0, 3.0), (4, 1.0), (8, 2.0), (12, math.nan)):
            history = history.after(step, {"error": value, "other": step}, "error")
        assert (history.best_step, history.best, history.initial) == (
            4,
            {"error": 1.0, "other": 4},
            {"error": 3.0, "other": 0},
        )
        assert history.after(13, {}, "error") == history

    def test_an_older_entry_that_is_put_back_does_not_become_the_best(self, tmp_path: Path) -> None:
        """An attacker has a copy of the untrained module's checkpoint, which is valid, and deletes the others."""
        store, task = LocalStore(tmp_path / "store"), Regression()
        context = WorkerContext(store.url, "r", 0, 1, "cpu")
        checkpoints = CheckpointManager(store, context.run.checkpoints_key("distill"), "error")
        with pytest.raises(RunError, match="stage distill has not ended"):
            best_checkpoint(context, "distill")
        for step, error in ((0, 3.0), (1, 1.0)):
            checkpoints.save(TorchEngine(task.module, SETTINGS), step, {"error": error})
            checkpoints.drain()
            if step == 0:
                copies = {entry.key: store.get(entry.key) for entry in store.list("runs/r/checkpoints/")}
        write_history(context, "distill", checkpoints.history)
        assert best_checkpoint(context, "distill").step == 1
        context.run.delete_checkpoints("distill")
        for key, data in copies.items():
            store.put(key, data)
        assert history_of(context, "distill").best == {"error": 1.0}
        with pytest.raises(NotFoundError):
            best_checkpoint(context, "distill")


class TestLargeObjects:
    @pytest.mark.parametrize("size", [1, PART_BYTES, 5_040_000_000, 20_000_000_000, 10**12])
    def test_parts(self, size: int) -> None:
        """Within Swift's limit of 1,000 parts and above AWS's minimum of 5 MiB, as large as they have to be."""
        assert math.ceil(size / part_bytes(size)) <= MAX_PARTS
        assert part_bytes(size) >= 64 << 20
        assert part_bytes(size) <= max(64 << 20, size / MAX_PARTS + (1 << 20))

    @pytest.mark.slow
    def test_memory_round_trip(self, s3_store: S3Store, tmp_path: Path) -> None:
        data = os.urandom(1 << 20) * 130 + b"end"
        s3_store.put("large", memoryview(data))
        s3_store.download("large", tmp_path / "large")
        assert (tmp_path / "large").read_bytes() == data


def test_versions_with_private_attributes_of_deepspeed() -> None:
    """`DeepSpeedEngine._link_moments` and `_flat_parameters` use them; look at both before another version is named."""
    import deepspeed
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert deepspeed.__version__ == "0.19.8"
    assert hasattr(DeepSpeedZeroOptimizer, "_lazy_init_hp_params_optimizer_state")
    assert "fp32_partitioned_groups_flat" in DeepSpeedZeroOptimizer_Stage3.__init__.__code__.co_names
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__

"""Checkpoints in the store: a file per worker with weights and moments, and an entry that makes them valid.

The entry is written last and contains the sizes and digests of the files. A checkpoint without its entry does not
exist, and a damaged one is not loaded. Any number of workers and any engine can continue from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.distributed as dist

from tinymusician.artifacts.background import BackgroundWriter
from tinymusician.artifacts.blobs import check_digest, digest_of
from tinymusician.artifacts.local_cache import user_cache
from tinymusician.artifacts.store import Store, check_key
from tinymusician.errors import DigestMismatchError, StoreError
from tinymusician.json_types import JsonObject
from tinymusician.training.checkpoint_shards import ShardBuffer, StoredTensors, partition
from tinymusician.training.engine import MOMENTS_PREFIX, WEIGHTS_PREFIX, EngineState, TrainEngine
from tinymusician.training.history import TrainingHistory

SHARD_SECONDS = 900.0
"""Time in which all workers must have written their shards: longer than a store may not respond."""
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 2.0
_ATTEMPTS = 3
_ENTRY = re.compile(r"/step-(?P<step>\d{8})\.json$")
_SHARD = re.compile(r"/step-(?P<step>\d{8})/[^/]+$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint after `step` optimizer steps; `metrics` are the held-out metrics at that step, as far as known."""

    step: int
    state: EngineState
    metrics: dict[str, float]
    history: TrainingHistory


class CheckpointManager:
    """The checkpoints of one run, under a prefix of a store. It keeps the newest two and the best one.

    The best one has the lowest held-out metric `monitor`. Each of `world` workers writes a shard, in the background.
    Each entry says which is the best so far: entries that are gone, or put back, do not change that.
    """

    def __init__(self, store: Store, prefix: str, monitor: str, rank: int = 0, world: int = 1) -> None:
        self._store, self._prefix, self._monitor = store, prefix, monitor
        self._rank, self._world = rank, world
        self.history = TrainingHistory()
        self._writer = BackgroundWriter()
        self._attempt: str | None = None
        self._buffer: ShardBuffer | None = None

    def save(self, engine: TrainEngine, step: int, metrics: Mapping[str, float]) -> None:
        """Copy the state of an engine after `step` steps, and begin to write it. All workers must call this.

        All wait together until the earlier checkpoint is valid: one that went on alone would seem to hang in its step.

        Raises:
            StoreError: the earlier one could not be written.
        """
        self.drain()
        if self._world > 1:
            dist.barrier()
        if self._attempt is None:
            self._attempt = _shared_token(self._world)
        parts = partition(engine.specs(), self._world)
        if self._buffer is None or self._buffer.specs != tuple(parts[self._rank]):
            self._buffer = ShardBuffer(parts[self._rank])
        engine.gather(self._buffer.tensors)
        self.history = self.history.after(step, metrics, self._monitor)
        note = {"step": step, "updates": engine.updates, "metrics": dict(metrics)}
        note["history"] = self.history.model_dump(mode="json")
        self._writer.submit("checkpoint", partial(self._write, self._buffer, note))

    @property
    def is_writing(self) -> bool:
        """Whether this worker still writes its shard, or the first one waits for the others'."""
        return self._writer.is_busy

    def drain(self) -> None:
        """Wait until the last checkpoint of this worker is written.

        Raises:
            StoreError: it could not be written.
        """
        self._writer.drain()

    def _write(self, buffer: ShardBuffer, note: JsonObject) -> None:
        """Write this worker's shard and its note; the first worker then writes the entry that makes them valid."""
        name = self._shard_name(note["step"], self._rank)
        self._store.put(f"{name}.safetensors", buffer.data)
        shard = {"size": buffer.data.nbytes, "sha256": hashlib.sha256(buffer.data).hexdigest()}
        self._store.put(f"{name}.json", json.dumps(shard).encode())
        if self._rank == 0:
            note["shards"] = [self._wait_for_shard(note["step"], rank) for rank in range(self._world)]
            self._store.put(self._entry_key(note["step"]), json.dumps(note).encode())
            self._delete_old()

    def _wait_for_shard(self, step: int, rank: int) -> JsonObject:
        """The note of a worker's shard, when it has been written.

        Raises:
            StoreError: it is not written in time.
        """
        name, wait, deadline = self._shard_name(step, rank), _FIRST_WAIT, time.monotonic() + SHARD_SECONDS
        while not self._store.exists(f"{name}.json"):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"checkpoint of step {step}: worker {rank} has not written its shard in {SHARD_SECONDS:g} s"
                )
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        return {"key": f"{name}.safetensors", **json.loads(self._store.get(f"{name}.json"))}

    def steps(self) -> list[int]:
        """The steps with a valid checkpoint, oldest first."""
        matches = (_ENTRY.search(entry.key) for entry in self._store.list(f"{self._prefix}/step-"))
        return sorted(int(match["step"]) for match in matches if match)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None before the first; what is saved next continues its history."""
        if not (steps := self.steps()):
            return None
        checkpoint = self.load(steps[-1])
        self.history = checkpoint.history
        return checkpoint

    def load(self, step: int) -> Checkpoint:
        """Fetch and verify the checkpoint of `step`; its tensors are read when they are needed.

        Workers of one machine share the files.

        Raises:
            DigestMismatchError: a file is damaged.
        """
        note = self._note(step)
        for _ in range(_ATTEMPTS):
            files = [self._fetch(shard) for shard in note["shards"]]
            with contextlib.suppress(FileNotFoundError):  # another process made room in the cache
                weights, moments = (StoredTensors(files, prefix) for prefix in (WEIGHTS_PREFIX, MOMENTS_PREFIX))
                state = EngineState(weights, moments, note["updates"])
                return Checkpoint(step, state, note["metrics"], note["history"])
        raise StoreError(f"checkpoint of step {step}: the cache of this machine has no space for it")

    def _fetch(self, shard: JsonObject) -> Path:
        key, expected = shard["key"], shard["sha256"]

        def make(path: Path) -> None:
            self._store.download(key, path)
            if digest_of(path) != expected:
                path.unlink()
                raise DigestMismatchError(
                    f"checkpoint {key}: damaged in the store; delete the .json entry of its step to go on from an "
                    "older one"
                )

        return user_cache().get(f"{expected}.safetensors", shard["size"], make)

    def _note(self, step: int) -> JsonObject:
        key = self._entry_key(step)
        try:
            note: JsonObject = json.loads(self._store.get(key))
            note = {name: note[name] for name in ("step", "updates", "metrics", "history", "shards")}
            note["history"] = TrainingHistory.model_validate(note["history"])
            for shard in note["shards"]:
                check_key(shard["key"])
                check_digest(shard["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise DigestMismatchError(
                f"checkpoint note {key}: damaged in the store; delete it to go on without it"
            ) from error
        return note

    def _entry_key(self, step: int) -> str:
        return f"{self._prefix}/step-{step:08d}.json"

    def _shard_name(self, step: int, rank: int) -> str:
        """The name of a shard's files, which no earlier attempt at this step has used."""
        return f"{self._prefix}/step-{step:08d}/{self._attempt}-{rank}-of-{self._world}"

    def _delete_old(self) -> None:
        """Delete all but the two newest and the best, and files that killed workers left at earlier steps."""
        steps, best = self.steps(), self.history.best_step
        for step in steps[:-2]:
            if step != best:
                self._store.delete(self._entry_key(step))
        retained = {step: self._note(step)["shards"] for step in steps if step == best or step in steps[-2:]}
        names = {shard["key"].removesuffix(".safetensors") for shards in retained.values() for shard in shards}
        for entry in list(self._store.list(f"{self._prefix}/step-")):
            match = _SHARD.search(entry.key)
            if match and int(match["step"]) <= steps[-1] and entry.key.rpartition(".")[0] not in names:
                self._store.delete(entry.key)


def _shared_token(world: int) -> str:
    """A random word, the same on all workers, which call this together."""
    tokens = [secrets.token_hex(4)]
    if world > 1:
        dist.broadcast_object_list(tokens)
    return tokens[0]

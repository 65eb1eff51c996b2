"""Checkpoints in the store: one safetensors file with weights and moments, and an index entry that makes it valid.

The entry is written last and contains the file's size and digest. A checkpoint without its entry does not exist, and a
damaged one is not loaded.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinymusician.artifacts.blobs import digest_of
from tinymusician.artifacts.store import Store
from tinymusician.errors import DigestMismatchError
from tinymusician.json_types import JsonObject
from tinymusician.training.engine import EngineState

_WEIGHTS, _MOMENTS = "weights/", "moments/"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint after `step` optimizer steps; `metrics` are the held-out metrics at that step, as far as known."""

    step: int
    state: EngineState
    metrics: dict[str, float]


class CheckpointManager:
    """The checkpoints of one run, under a prefix of a store. It keeps the newest two and the best one.

    The best one has the lowest held-out metric `monitor`.
    """

    def __init__(self, store: Store, prefix: str, monitor: str) -> None:
        self._store, self._prefix, self._monitor = store, prefix, monitor

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and delete those that are no longer needed."""
        tensors = {_WEIGHTS + key: value for key, value in checkpoint.state.weights.items()}
        tensors |= {_MOMENTS + key: value for key, value in checkpoint.state.moments.items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            save_file(_without_shared_memory(tensors), path)
            self._store.upload(path, self._key(checkpoint.step, "safetensors"))
            note = {
                "step": checkpoint.step,
                "updates": checkpoint.state.updates,
                "metrics": checkpoint.metrics,
                "size": path.stat().st_size,
                "sha256": digest_of(path),
            }
        self._store.put(self._key(checkpoint.step, "json"), json.dumps(note).encode())
        self._delete_old()

    def steps(self) -> list[int]:
        """The steps with a valid checkpoint, oldest first."""
        keys = (entry.key for entry in self._store.list(f"{self._prefix}/step-"))
        return sorted(int(key.rpartition("-")[2].removesuffix(".json")) for key in keys if key.endswith(".json"))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None before the first."""
        steps = self.steps()
        return self.load(steps[-1]) if steps else None

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best held-out metric so far."""
        step = self.best_step()
        return self.load(step) if step is not None else None

    def best_step(self) -> int | None:
        """The step of the best checkpoint, from the entries themselves."""
        values = {step: self.metrics(step).get(self._monitor, math.nan) for step in self.steps()}
        finite = {step: value for step, value in values.items() if math.isfinite(value)}
        return min(finite, key=lambda step: finite[step]) if finite else None

    def metrics(self, step: int) -> dict[str, float]:
        """The held-out metrics in the entry of the checkpoint of `step`."""
        return dict(self._note(step)["metrics"])

    def load(self, step: int) -> Checkpoint:
        """Read and verify the checkpoint of `step`.

        Raises:
            DigestMismatchError: its file is damaged.
        """
        note, key = self._note(step), self._key(step, "safetensors")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            self._store.download(key, path)
            if digest_of(path) != note["sha256"]:
                raise DigestMismatchError(
                    f"checkpoint {key}: damaged in the store; delete its .json note to go on from an older one"
                )
            try:
                tensors = load_file(path)
            except SafetensorError as error:
                raise DigestMismatchError(f"checkpoint {key}: not a safetensors file ({error})") from error
        weights = {key.removeprefix(_WEIGHTS): value for key, value in tensors.items() if key.startswith(_WEIGHTS)}
        moments = {key.removeprefix(_MOMENTS): value for key, value in tensors.items() if key.startswith(_MOMENTS)}
        return Checkpoint(step, EngineState(weights, moments, note["updates"]), note["metrics"])

    def _note(self, step: int) -> JsonObject:
        key = self._key(step, "json")
        try:
            note: JsonObject = json.loads(self._store.get(key))
            note = {name: note[name] for name in ("step", "updates", "metrics", "size", "sha256")}
        except (ValueError, KeyError, TypeError) as error:
            raise DigestMismatchError(
                f"checkpoint note {key}: damaged in the store; delete it to go on without it"
            ) from error
        return note

    def _key(self, step: int, suffix: str) -> str:
        return f"{self._prefix}/step-{step:08d}.{suffix}"

    def _delete_old(self) -> None:
        """Delete all but the two newest and the best, and files that a killed worker left without their entry."""
        steps, best = self.steps(), self.best_step()
        for step in steps[:-2]:
            if step != best:
                self._store.delete(self._key(step, "json"))
        retained = {self._key(step, "safetensors") for step in {*steps[-2:], best} if step is not None}
        for entry in list(self._store.list(f"{self._prefix}/")):
            if entry.key.endswith(".safetensors") and entry.key not in retained:
                self._store.delete(entry.key)


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that do not share memory, as safetensors requires; only those that do are copied."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if pointer in seen else value.contiguous()
        seen.add(pointer)
    return apart

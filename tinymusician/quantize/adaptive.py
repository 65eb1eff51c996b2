"""Measuring a bundle's groups: each one alone in each precision, and all of them in a plan together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tinymusician.quantize.apply import GRAPHS, group_of, quantize_graph
from tinymusician.quantize.precision import Plan, Precision
from tinymusician.quantize.rollout import Floats, Sequences, compare, rollout
from tinymusician.quantize.sensitivity import Measure
from tinymusician.runtime.bundle import Bundle, BundleManifest
from tinymusician.runtime.player import Player


def groups_of(folder: Path) -> dict[str, int]:
    """Every group of the float32 graphs in `folder`, with the bytes of its weights."""
    found: dict[str, int] = {}
    for graph in GRAPHS:
        if (folder / f"{graph}.onnx").exists():
            model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
            sizes = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
            for node in model.graph.node:
                if node.op_type in {"MatMul", "Gather", "Conv", "ConvTranspose", "LSTM"}:
                    group = group_of(graph, node.name)
                    found[group] = found.get(group, 0) + sum(sizes.get(name, 0) for name in node.input)
    return found


class Measurer:
    """Measures plans on the float32 graphs in `folder` against their own logits on `sequences`."""

    def __init__(self, folder: Path, manifest: BundleManifest, sequences: Sequences, threads: int = 0) -> None:
        self.folder, self.manifest, self.sequences, self._threads = folder, manifest, sequences, threads
        self.whole = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".json")
        player = self.player(folder)
        self.wanted: Floats = rollout(player, sequences)
        self._wave = player.codec(sequences.codes[0])

    def player(self, folder: Path) -> Player:
        """The graphs in `folder` ready to run; they are this process's own, so nothing is checked."""
        return Player(Bundle(folder, self.manifest), self._threads)

    def measure(self, plan: Plan) -> tuple[int, float, float]:
        """What a plan makes of the graphs: bytes of all files, mean KL (nats a code), and the codec's SNR in dB."""
        with tempfile.TemporaryDirectory() as name:
            target = Path(name)
            size = self._changed(plan, target)
            player = self.player(target)
            kl = compare(self.wanted, rollout(player, self.sequences)).mean_kl
            return size, kl, snr(self._wave, player.codec(self.sequences.codes[0]))

    def group(self, group: str, size: int, plan: Plan, precision: Precision) -> Measure:
        """One group of `size` bytes in float32, alone in `precision`; the rest of the plan says how."""
        alone = plan.model_copy(update={"default": "float32", "groups": {group: precision}})
        total, kl, _ = self.measure(alone)
        return Measure(size + total - self.whole, max(0.0, kl))

    def _changed(self, plan: Plan, target: Path) -> int:
        """Write the graphs that the plan changes, link the others; returns the bytes of all."""
        for path in self.folder.iterdir():
            graph = path.stem
            if graph in GRAPHS and path.suffix == ".onnx" and self._touches(plan, graph):
                quantize_graph(plan, graph, path, target / path.name)
            else:
                (target / path.name).symlink_to(path)
        return sum(path.stat().st_size for path in target.iterdir() if path.suffix != ".json")

    def _touches(self, plan: Plan, graph: str) -> bool:
        return plan.uniform_int8 or any(plan.of(group) != "float32" for group in groups_in(self.folder, graph))


def groups_in(folder: Path, graph: str) -> list[str]:
    """The groups of one graph."""
    model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
    kinds = {"MatMul", "Gather", "Conv", "ConvTranspose", "LSTM"}
    return sorted({group_of(graph, node.name) for node in model.graph.node if node.op_type in kinds})


def snr(wanted: Any, found: Any) -> float:
    """Signal to noise in dB of a wave against the one it should be."""
    noise = float(np.square(found.astype(np.float64) - wanted).sum())
    power = float(np.square(wanted.astype(np.float64)).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(power / noise))


def options(group: str, allowed: Sequence[Precision]) -> list[Precision]:
    """The precisions that a group may be tried in: convolutions know no blocks."""
    return [name for name in allowed if group != "codec" or name in ("float32", "float16")]

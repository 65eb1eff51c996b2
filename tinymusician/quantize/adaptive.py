"""Measures precision plans: each group of weights alone in each precision, and all of them together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tinymusician.quantize.apply import GRAPHS, WEIGHTED, group_of, quantize_graph
from tinymusician.quantize.precision import PrecisionPlan
from tinymusician.quantize.sensitivity import GroupSensitivity, Table
from tinymusician.runtime.bundle import Bundle
from tinymusician.runtime.bundle_manifest import BundleManifest
from tinymusician.runtime.generator import MusicGenerator
from tinymusician.runtime.rollout import Floats, ForcedBatch, compare, rollout, rollout_with_ranges
from tinymusician.settings import Precision

CONVOLUTIONS: tuple[Precision, ...] = ("float32", "float16")
"""The precisions of the codec: convolutions cannot be quantized in blocks."""


def groups_of(path: Path) -> dict[str, int]:
    """Every group of a float32 graph, with the bytes of its weights; each codebook's head is its own group."""
    model = onnx.load(str(path), load_external_data=False)
    sizes = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    groups: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            group = group_of(path.stem, node.name)
            groups[group] = groups.get(group, 0) + sum(sizes.get(name, 0) for name in node.input)
    if heads := groups.pop("lm_heads.0", None):
        codes_dim = next(value for value in model.graph.input if value.name == "codes").type.tensor_type.shape.dim[1]
        groups |= {f"lm_heads.{book}": heads // codes_dim.dim_value for book in range(codes_dim.dim_value)}
    return groups


def trials(groups: Sequence[str], precisions: Sequence[Precision]) -> list[tuple[str, Precision]]:
    """Every group with every precision to try, in order."""
    return [
        (group, precision)
        for group in groups
        for precision in precisions
        if precision != "float32" and (group != "codec" or precision in CONVOLUTIONS)
    ]


def alone(group: str, precision: Precision, base: PrecisionPlan) -> PrecisionPlan:
    """A plan that changes one group only; block size, symmetry and method are those of `base`."""
    return base.model_copy(update={"default": "float32", "groups": {group: precision}, "cache": "float32"})


@dataclass(frozen=True)
class PlanMetrics:
    """A plan's bytes of all files, KL of the sampled distribution by codebook (nats per code), and codec SNR in dB."""

    size: int
    by_codebook: tuple[float, ...]
    codec_snr: float


class PlanEvaluator:
    """Measures plans on the float32 graphs in `folder` against their own logits on `sequences`; 0 threads means all."""

    def __init__(self, folder: Path, manifest: BundleManifest, sequences: ForcedBatch, threads: int = 0) -> None:
        self._threads = threads
        self.folder, self.manifest, self.sequences = folder, manifest, sequences
        self.in_graph: dict[str, dict[str, int]] = {
            graph: groups_of(_graph(folder, graph)) for graph in GRAPHS if _graph(folder, graph).exists()
        }
        everything = {name: size for groups in self.in_graph.values() for name, size in groups.items()}
        self.groups = {name: size for name, size in everything.items() if name != "codec_encoder"}
        self.whole = _bytes(folder)
        generator = self.generator(folder)
        logits, self.ranges = rollout_with_ranges(generator, sequences)
        self._expected = sequences.sampled(logits)
        self._wave = generator.codec(sequences.codes[0])

    def generator(self, folder: Path) -> MusicGenerator:
        """A generator for the graphs in `folder`, which this process wrote, so files are not verified."""
        return MusicGenerator(Bundle(folder, self.manifest), self._threads)

    def measure(self, plan: PrecisionPlan) -> PlanMetrics:
        """Quantize the graphs, and measure them."""
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as name:
            target = Path(name)
            self._change(plan, target)
            generator = self.generator(target)
            logits = rollout(generator, self.sequences)
            difference = compare(self._expected, self.sequences.sampled(logits))
            codec_snr = snr(self._wave, generator.codec(self.sequences.codes[0]))
            return PlanMetrics(_bytes(target), tuple(max(0.0, kl) for kl in difference.by_codebook), codec_snr)

    def table(self, metrics: Mapping[tuple[str, Precision], PlanMetrics]) -> Table:
        """The sensitivity of each group in each precision, from measurements of it alone; failed ones are left out."""
        nothing = (0.0,) * self.manifest.architecture.codebooks
        table: dict[str, dict[Precision, GroupSensitivity]] = {
            group: {"float32": GroupSensitivity(size, nothing)} for group, size in self.groups.items()
        }
        for (group, precision), outcome in metrics.items():
            size = self.groups[group] + outcome.size - self.whole
            if not np.isfinite(outcome.by_codebook).all():
                continue
            table[group][precision] = GroupSensitivity(size, outcome.by_codebook)
        return table

    def _change(self, plan: PrecisionPlan, target: Path) -> None:
        """Write the graphs that the plan changes, and link the others."""
        for path in self.folder.iterdir():
            if path.suffix == ".onnx" and self._touches(plan, path.stem):
                quantize_graph(plan, path.stem, path, target / path.name, self.ranges)
            elif path.suffix != ".data":
                os.link(path, target / path.name)
        for data in self.folder.glob("*.data"):
            if not (target / data.name).exists() and not self._touches(plan, Path(data.stem).stem):
                os.link(data, target / data.name)

    def _touches(self, plan: PrecisionPlan, graph: str) -> bool:
        cache_is_quantized = plan.cache == "int8" and graph == "decoder"
        return (
            cache_is_quantized
            or plan.uniform_int8
            or any(plan.of(group) != "float32" for group in self.in_graph[graph])
        )


def snr(expected: Floats, actual: Floats) -> float:
    """The signal-to-noise ratio of a wave in dB; minus infinity if it is not finite."""
    if not np.isfinite(actual).all():
        return -float("inf")
    noise = float(np.square(actual.astype(np.float64) - expected).sum())
    power = float(np.square(expected.astype(np.float64)).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(power / noise))


def _graph(folder: Path, name: str) -> Path:
    return folder / f"{name}.onnx"


def _bytes(folder: Path) -> int:
    """The bytes of all graphs with their weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".onnx", ".data"))

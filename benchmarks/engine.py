"""The engine against other ways to run a MusicGen on a CPU, with random weights of MusicGen-Small's shape.

    python benchmarks/engine.py [--folder DIR] [--seconds 10] [--openvino]

speedup_vs_transformers  time of transformers' `generate` in float32 over ours, text and codec included
speedup_vs_optimum       the same for a loop over Optimum's decoder_model and decoder_with_past_model in float32
real_time_factor         our time over the audio's length, text and codec included, guidance 3
bandwidth_share          bytes of the decoder's products / read bandwidth / time a step
guided_speedup_b4        codes a second of four requests in one pass over four guided ones
step_1500_over_50        time of a guided step at position 1,450 over one at 50
batch8_speedup           codes a second of eight guided requests side by side over one after another, plan `server`
batch8_over_adaptive     the same batch over one after another under the adaptive plan, which is faster for one
batch8_same_codes_*      share of a greedy request's codes that are equal alone and in a batch of eight
bundle_ratio_*           bytes of the bundle over those of the float32 checkpoint
memory_over_bundle       peak memory of `tmctl generate` over the bundle
first_audio_s            from the request to the first chunk of a stream

The adaptive plan is benchmarks/plans/musicgen-small-random.yaml, made on this very model by
`tmctl submit quantize tinymusician --model DIR`. Everything runs on two threads.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tinymusician.json_types import JsonObject
from tinymusician.models.protocols import Musicgen
from tinymusician.quantize.precision import PrecisionPlan
from tinymusician.runtime.generator import MusicGenerator

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.report import report
from benchmarks.rivals import GUIDANCE, PROMPT, THREADS, TOP_K, clocked, with_openvino, with_optimum, with_transformers
from benchmarks.shapes import write_musicgen
from tinymusician.quantize.export import GRAPHS_VERSION

PLAN = Path(__file__).parent / "plans" / "musicgen-small-random.yaml"
CACHE = Path.home() / ".cache" / "tinymusician"
RANGE = 4.0
"""Keys and values of the random model stay below this; the int8 cache is scaled to it."""


def main() -> None:
    """Everything in one run; the last line is JSON."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--folder", type=Path, default=CACHE / f"bench-engine-{GRAPHS_VERSION}")
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--openvino", action="store_true", help="also time OpenVINO, if it is installed")
    chosen = arguments.parse_args()
    bundles = prepare(chosen.folder)
    figures: dict[str, float] = {}
    for name in ("adaptive", "paper"):
        figures[f"bundle_ratio_{name}"] = size(bundles[name]) / weights_size(chosen.folder / "model")
    figures |= ours(bundles["adaptive"], chosen.seconds)
    figures |= steps(bundles["adaptive"])
    figures |= together(bundles)
    figures |= memory(bundles["adaptive"], chosen.seconds)
    figures["real_time_factor_12_layers_one_pass"] = one_pass(bundles["adaptive-12"], chosen.seconds)
    profiled = profile(bundles["adaptive"])
    seconds = figures["generate_s"]
    figures["speedup_vs_optimum"] = with_optimum(chosen.folder, chosen.seconds) / seconds
    if chosen.openvino:
        figures |= with_openvino(chosen.folder)
    figures["speedup_vs_transformers"] = with_transformers(chosen.folder / "model", chosen.seconds) / seconds
    settings = {"threads": THREADS, "guidance": GUIDANCE, "seconds": chosen.seconds, "profile_ms_a_step": profiled}
    report("engine", figures, settings)


def prepare(folder: Path) -> dict[str, Path]:
    """The model, its float32 graphs and its bundles, made where they are missing."""
    from tinymusician.models.musicgen import load_musicgen
    from tinymusician.models.prune_layers import prune_layers
    from tinymusician.quantize.optimum import export_optimum
    from tinymusician.quantize.precision import load_plan

    model_folder = write_musicgen(folder / "model")
    plans = {name: load_plan(name) for name in ("paper", "server")} | {"adaptive": load_plan(str(PLAN))}
    half_plan = plans["adaptive"].model_copy(
        update={"groups": {g: p for g, p in plans["adaptive"].groups.items() if _within(g, 12)}}
    )
    expected = plans | {"adaptive-12": half_plan}
    made = {name: folder / name for name in expected}
    if not all(_is_made(path, expected[name]) for name, path in made.items()):
        model = load_musicgen(str(model_folder))
        export(model, model_folder, folder / "float32")
        for name, plan in plans.items():
            bundle(model, plan, folder / "float32", made[name])
        half = prune_layers(model, range(0, 24, 2))
        export(half, model_folder, folder / "float32-12")
        bundle(half, half_plan, folder / "float32-12", made["adaptive-12"])
    if not (folder / "optimum" / "decoder_with_past_model.onnx").exists():
        export_optimum(model_folder, folder / "optimum")
    return made


def _is_made(folder: Path, plan: PrecisionPlan) -> bool:
    """Whether a bundle is there that was made by this very plan."""
    from tinymusician.quantize.precision import load_plan

    return (folder / "manifest.json").exists() and load_plan(str(folder / "plan.yaml")) == plan


def _within(group: str, layers: int) -> bool:
    return not group.startswith("layers.") or int(group.partition(".")[2]) < layers


def export(model: Musicgen, model_folder: Path, folder: Path) -> None:
    """The float32 graphs."""
    from tinymusician.quantize.export import export_fused

    if not (folder / "codec_decoder.onnx").exists():
        export_fused(model, model_folder / "tokenizer.json", folder, continuation=False)


def bundle(model: Musicgen, plan: PrecisionPlan, source: Path, folder: Path) -> None:
    """A bundle by `plan`."""
    from tinymusician.quantize.apply import apply_plan
    from tinymusician.quantize.export import architecture_of
    from tinymusician.quantize.package import PLAN_FILE, describe, write_manifest
    from tinymusician.quantize.precision import save_plan
    from tinymusician.runtime.bundle_manifest import SamplingDefaults

    heads, width = model.config.decoder.num_attention_heads, model.config.decoder.hidden_size
    largest = np.full((heads, width // heads), RANGE, np.float32)
    layers = model.config.decoder.num_hidden_layers
    apply_plan(plan, source, folder, [(largest, largest)] * layers)
    save_plan(plan, folder / PLAN_FILE)
    facts: JsonObject = {"licence": "none", "minimum_memory": 0, "parity": {}, "cost": {}, "lineage": {}}
    write_manifest(describe(folder, "bench", architecture_of(model), SamplingDefaults(), **facts), folder)


def ours(folder: Path, seconds: float) -> dict[str, float]:
    """Playing from the bundle: the whole of it, and how long the first chunk of a stream takes."""
    from tinymusician.runtime.generator import GenerationRequest, load_generator

    generator = load_generator(folder, THREADS)
    generator.generate(GenerationRequest(PROMPT, seconds=1))
    request = GenerationRequest(PROMPT, seconds=seconds, guidance=GUIDANCE, top_k=TOP_K)
    took = statistics.median(clocked(lambda: generator.generate(request)) for _ in range(3))
    first = []
    for _ in range(5):
        began = time.perf_counter()
        stream = generator.stream(request)
        next(stream)
        first.append(time.perf_counter() - began)
        stream.close()
    return {"generate_s": took, "real_time_factor": took / seconds, "first_audio_s": statistics.median(first)}


def one_pass(folder: Path, seconds: float) -> float:
    """The real-time factor of a student with half the layers, with its guidance in it."""
    from tinymusician.runtime.generator import GenerationRequest, load_generator

    generator = load_generator(folder, THREADS)
    generator.generate(GenerationRequest(PROMPT, seconds=1, guidance=1))
    request = GenerationRequest(PROMPT, seconds=seconds, guidance=1)
    return statistics.median(clocked(lambda: generator.generate(request)) for _ in range(3)) / seconds


def steps(folder: Path) -> dict[str, float]:
    """Times of single steps, and what share of the memory's bandwidth they use."""
    from tinymusician.runtime.generator import load_generator

    generator = load_generator(folder, THREADS)
    expected = {"early": (2, 50), "middle": (2, 250), "late": (2, 1450), "four": (4, 250), "eight": (8, 250)}
    actual: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(5):
        for name, (rows, position) in expected.items():
            actual[name].append(step_seconds(generator, rows, position))
    took = {name: statistics.median(values) for name, values in actual.items()}
    tables = 4 * 2049 * 1024 + 2048 * 1024
    read = (folder / "decoder.onnx").stat().st_size - tables
    speed = bandwidth()
    return {
        "step_ms_50": 1000 * took["early"],
        "step_ms_250": 1000 * took["middle"],
        "step_ms_1450": 1000 * took["late"],
        "step_1500_over_50": took["late"] / took["early"],
        "guided_speedup_b4": took["eight"] / took["four"],
        "bandwidth_gb_s": speed / 1e9,
        "bandwidth_share": read / speed / took["middle"],
    }


def step_seconds(generator: MusicGenerator, rows: int, position: int, count: int = 12) -> float:
    """The median time of a step with so many rows that all stand near `position`."""
    decoder, text = generator.decoder, generator.text(PROMPT)
    added = decoder.add([text] * rows, position + count)
    for row in added:
        row.position = position
    codes = np.random.default_rng(0).integers(0, decoder.vocabulary, (rows, decoder.num_codebooks))
    took = [clocked(lambda: decoder.step(codes)) for _ in range(count)]
    for row in reversed(added):
        decoder.remove(row)
    return statistics.median(took[2:])


def together(bundles: dict[str, Path]) -> dict[str, float]:
    """Eight guided requests of two seconds in one batch, and one after another."""
    from tinymusician.runtime.generator import GenerationRequest, load_generator

    def run(generator: MusicGenerator, groups: list[list[Any]]) -> tuple[float, list[Any]]:
        began, codes = time.perf_counter(), []
        for group in groups:
            tracks = [generator.start(request) for request in group]
            while not all(track.is_finished for track in tracks):
                generator.engine.step()
            codes += [track.codes for track in tracks]
        return time.perf_counter() - began, codes

    requests = [GenerationRequest(PROMPT, seconds=2, seed=seed, guidance=GUIDANCE) for seed in range(8)]
    greedy = [GenerationRequest(word, seconds=2, guidance=GUIDANCE, temperature=0) for word in PROMPT.split()[:8]]
    alone, batch, same = {}, {}, {}
    for name in ("server", "adaptive"):
        generator = load_generator(bundles[name], THREADS)
        run(generator, [requests[:1]])
        alone[name] = statistics.median(run(generator, [[request] for request in requests])[0] for _ in range(2))
        batch[name] = statistics.median(run(generator, [requests])[0] for _ in range(3))
        beside, apart = run(generator, [greedy])[1], run(generator, [[request] for request in greedy])[1]
        same[name] = float(np.mean([a == b for a, b in zip(beside, apart, strict=True)]))
    return {
        "batch8_speedup": alone["server"] / batch["server"],
        "batch8_over_adaptive": alone["adaptive"] / batch["server"],
        "batch8_speedup_adaptive": alone["adaptive"] / batch["adaptive"],
        "batch8_step_ms": 1000 * batch["server"] / 103,
        "batch8_same_codes_server": same["server"],
        "batch8_same_codes_adaptive": same["adaptive"],
    }


def memory(folder: Path, seconds: float) -> dict[str, float]:
    """The peak memory of `tmctl generate`, as it says itself."""
    tmctl = str(Path(sys.executable).with_name("tmctl"))
    output = str(folder.parent / "memory.wav")
    command = [tmctl, "generate", PROMPT, "--model", str(folder), "--seconds", str(seconds), "--threads", str(THREADS)]
    ended = subprocess.run([*command, "-o", output, "--json"], capture_output=True, text=True, check=True)
    peak = json.loads(ended.stdout)["peak_memory_bytes"]
    return {
        "memory_over_bundle": peak / size(folder),
        "peak_memory_mb": peak / 1e6,
        "memory_beyond_1.3_bundle_mb": (peak - 1.3 * size(folder)) / 1e6,
    }


def profile(folder: Path, count: int = 30) -> dict[str, float]:
    """Milliseconds of a guided step at position 250 by kind of operator, by ONNX Runtime's own profiler."""
    import onnxruntime

    from tinymusician.runtime.generator import load_generator

    generator = load_generator(folder, THREADS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = THREADS, True
    options.profile_file_prefix = str(folder.parent / "profile")
    session = onnxruntime.InferenceSession(str(folder / "decoder.onnx"), options, providers=["CPUExecutionProvider"])
    generator.decoder = type(generator.decoder)(session)
    step_seconds(generator, 2, 250, count)
    events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1000 / count
    return {name: round(value, 3) for name, value in sorted(spent.items(), key=lambda item: -item[1])[:8]}


def bandwidth(gigabytes: float = 1.0) -> float:
    """Bytes a second at which two threads read memory: the best of ten sums over a large array."""
    import torch

    torch.set_num_threads(THREADS)
    array = torch.ones(int(gigabytes * 1e9 / 4))
    return 4 * len(array) / min(clocked(array.sum) for _ in range(10))


def size(folder: Path) -> int:
    """Bytes of a bundle."""
    return sum(path.stat().st_size for path in folder.iterdir())


def weights_size(folder: Path) -> int:
    """Bytes of the float32 checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()

"""What a worker needs for a large set of sequences: memory, and time per step.

    python -m benchmarks.sequences [--sequences 1000000] [--frames 500] [--steps 1000]

Makes shards of random codes with captions, eight sequences for each of the prompts, as sampling stores them. A new
process then reads prompts and shards as a worker does, and takes the rows of a distillation's steps.

    prompts_seconds     to parse and check the prompts
    join_seconds        to read all shards, which the first worker of a machine does
    open_seconds        for the others
    step_us             rows and codes of a step of 32 sequences
    memory_mb           the process's own memory (anonymous pages) beyond what it had before
    peak_memory_mb      its largest value
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np

from benchmarks.report import report
from tinymusician.artifacts.store import LocalStore
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.data.shards import ShardCache
from tinymusician.data.tokens import WINDOW_ROWS, TokenDataset, rows_of_step

SAMPLES, SHARD_PROMPTS, TEXT_TOKENS, BATCH = 8, 16, 24, 32


def make(folder: Path, sequences: int, frames: int) -> None:
    """Write the prompts, and the shards of their sequences."""
    prompts = sequences // SAMPLES
    with (folder / "prompts.jsonl").open("w") as file:
        splits = ("validation", "test", *("train",) * prompts)
        for number, split in enumerate(splits):
            text = f"a slow waltz for flute and piano in a minor, number {number}"
            file.write(json.dumps({"text": text, "split": split}) + "\n")
    random, rows = np.random.default_rng(0), SHARD_PROMPTS * SAMPLES
    shards = _shards(folder, sequences)
    for index in range(shards.count):
        codes = random.integers(0, 2048, (rows, 4, frames), dtype=np.int16)
        ids = random.integers(0, 32000, (rows, TEXT_TOKENS), dtype=np.int64)
        shards.write(index, {"codes": codes, "text_ids": ids, "text_mask": np.ones_like(ids)})


def measure(folder: Path, sequences: int, steps: int, results: SimpleQueue[dict[str, float]]) -> None:
    """What one worker does."""
    before, peak, figures = _anonymous_memory(), 0.0, {}
    began = time.perf_counter()
    prompts = load_prompts(str(folder / "prompts.jsonl"))
    texts = texts_of(prompts, "train")
    figures["prompts_seconds"] = time.perf_counter() - began
    peak = _anonymous_memory()
    assert len(texts) == sequences // SAMPLES
    del prompts
    for name in ("join_seconds", "open_seconds"):
        began = time.perf_counter()
        arrays = _shards(folder, sequences).join(("codes", "text_ids", "text_mask"), folder / "cache", None)
        tokens = TokenDataset(arrays["codes"], arrays["text_ids"], arrays["text_mask"])
        figures[name] = time.perf_counter() - began
        peak = max(peak, _anonymous_memory())
    rows_of_step(0, 0, 1, BATCH, sequences, 0, WINDOW_ROWS)
    began = time.perf_counter()
    for step in range(steps):
        tokens.select(rows_of_step(step, 0, 1, BATCH, sequences, 0, WINDOW_ROWS))
    figures["step_us"] = (time.perf_counter() - began) / steps * 1e6
    figures["memory_mb"] = (_anonymous_memory() - before) / 1e6
    figures["peak_memory_mb"] = (max(peak, _anonymous_memory()) - before) / 1e6
    results.put(figures)


def _shards(folder: Path, sequences: int) -> ShardCache:
    count = -(-sequences // (SHARD_PROMPTS * SAMPLES))
    return ShardCache(LocalStore(folder / "store"), "samples", {"sequences": sequences}, count)


def _anonymous_memory() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def main() -> None:
    """Measure in a process of its own."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sequences", type=int, default=1_000_000)
    options.add_argument("--frames", type=int, default=500)
    options.add_argument("--steps", type=int, default=1000)
    chosen = options.parse_args()
    context = multiprocessing.get_context("spawn")
    sequences = chosen.sequences // (SHARD_PROMPTS * SAMPLES) * SHARD_PROMPTS * SAMPLES
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        make(Path(name), sequences, chosen.frames)
        results: SimpleQueue[dict[str, float]] = context.SimpleQueue()
        worker = context.Process(target=measure, args=(Path(name), sequences, chosen.steps, results))
        worker.start()
        figures = results.get()
        worker.join()
    report("sequences", figures, vars(chosen) | {"sequences": sequences})


if __name__ == "__main__":
    main()

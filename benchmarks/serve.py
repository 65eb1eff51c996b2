"""The endpoint against the engine alone, and the latency of its clients: band-small, Ray Serve, HTTP.

    python benchmarks/serve.py [--model DIR] [--seconds 8] [--turns 3]

endpoint_overhead   time of a whole request through the endpoint over the same on the bare engine, in a process of its
                    own, both on all cores; median of turns, one after the other
clients8_speedup    eight clients one after another over eight at once
first_audio_p95_s   from the request to its first sound, 95th percentile of eight clients that ask again and again
cold_start_s        from `tmctl serve`, with no Ray running, to its word that the endpoint is ready
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tinymusician.json_types import JsonObject

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import requests

from benchmarks.report import report
from tests.ray_cluster import BIN
from tests.s3_server import free_port

PROMPT = "a fast and cheerful reel played on the fiddle"
BAND = Path(__file__).parents[1] / "tinymusician/models/weights/band-small"
CLIENTS, REQUESTS = 8, 5
BARE = """
import sys, time
from pathlib import Path
from tinymusician.runtime.generator import GenerationRequest, load_generator
generator = load_generator(Path(sys.argv[1]))
generator.generate(GenerationRequest("warming up", seconds=1))
for line in sys.stdin:
    began = time.perf_counter()
    generator.generate(GenerationRequest(sys.argv[2], seconds=float(sys.argv[3]), seed=int(line)))
    print(time.perf_counter() - began, flush=True)
"""


def main() -> None:
    """Everything in one run; the last line is JSON."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=Path, help="a bundle's folder; made of the packaged student if not given")
    arguments.add_argument("--seconds", type=float, default=8.0)
    arguments.add_argument("--turns", type=int, default=3)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        bundle = chosen.model or exported(Path(folder) / "bundle")
        with served(bundle, Path(folder)) as (url, cold):
            figures = {"cold_start_s": cold}
            figures["endpoint_overhead"] = overhead(url, bundle, chosen.seconds, chosen.turns)
            figures["clients8_speedup"] = speedup(url, chosen.seconds, chosen.turns)
            first = first_audio(url, chosen.seconds)
            figures["first_audio_p95_s"] = float(np.percentile(first, 95))
            figures["first_audio_median_s"] = float(np.median(first))
    model = chosen.model.name if chosen.model else "band-small, float32"
    report("serve", figures, {"model": model, "seconds": chosen.seconds})


def exported(folder: Path) -> Path:
    """The packaged student as a float32 bundle."""
    from tests.bundles import write_bundle
    from tinymusician.models.musicgen import load_musicgen

    folder.mkdir()
    write_bundle(load_musicgen("band-small"), BAND / "tokenizer.json", folder, seconds=8.0)
    return folder


@contextmanager
def served(bundle: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """The endpoint's address, and how many seconds it took to be ready, with a Ray of its own."""
    (folder / "home").mkdir()
    environment = {**os.environ, "HOME": str(folder / "home"), "RAY_TMPDIR": str(folder)}
    port = free_port()
    began = time.perf_counter()
    command = [str(BIN / "tmctl"), "serve", str(bundle), "--port", str(port), "--detach"]
    try:
        subprocess.run(command, env=environment, check=True)
        yield f"http://127.0.0.1:{port}", time.perf_counter() - began
    finally:
        subprocess.run([str(BIN / "ray"), "stop", "--force"], env=environment, check=False, capture_output=True)


def generate(url: str, seconds: float, seed: int) -> float:
    """Seconds that a whole request takes."""
    began = time.perf_counter()
    body = {"prompt": PROMPT, "seconds": seconds, "seed": seed}
    requests.post(f"{url}/v1/audio/generations", json=body, timeout=300).raise_for_status()
    return time.perf_counter() - began


def overhead(url: str, bundle: Path, seconds: float, turns: int) -> float:
    """The endpoint's time over the bare engine's."""
    command = [sys.executable, "-c", BARE, str(bundle), PROMPT, str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bare:
        assert bare.stdin is not None
        assert bare.stdout is not None
        ratios = []
        for turn in range(2 * turns + 1):
            print(turn, file=bare.stdin, flush=True)
            alone = float(bare.stdout.readline())
            ratios.append(generate(url, seconds, turn) / alone)
        bare.stdin.close()
    return statistics.median(ratios[1:])


def speedup(url: str, seconds: float, turns: int) -> float:
    """One after another over all at once."""
    result = []
    for turn in range(turns):
        seeds = [CLIENTS * turn + client for client in range(CLIENTS)]
        alone = sum(generate(url, seconds, seed) for seed in seeds)
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda seed: generate(url, seconds, seed), seeds))
        result.append(alone / (time.perf_counter() - began))
    return statistics.median(result)


def first_audio(url: str, seconds: float) -> list[float]:
    """Seconds to the first samples of streams, of clients who ask again and again."""
    begin = threading.Barrier(CLIENTS)

    def client(number: int) -> list[float]:
        begin.wait()
        return [one(number * REQUESTS + turn) for turn in range(REQUESTS)]

    def one(seed: int) -> float:
        body: JsonObject = {"prompt": PROMPT, "seconds": seconds, "seed": seed, "stream": True}
        began = time.perf_counter()
        with requests.post(f"{url}/v1/audio/generations", json=body, stream=True, timeout=300) as answer:
            answer.raise_for_status()
            parts = answer.iter_content(1024)
            next(parts)
            took = time.perf_counter() - began
            for _ in parts:
                pass
        return took

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [took for result in pool.map(client, range(CLIENTS)) for took in result]


if __name__ == "__main__":
    main()

"""The distance of a bundle's audio from the float32 bundle's, and of two float32 runs from each other.

    python benchmarks/bundle_sound.py FLOAT32_BUNDLE BUNDLE [--samples 32]

Each clip is described by its timbre (24 bands), spectral centroid and onset rate, each scaled by its spread in float32.
The distance of two sets of clips is the energy distance (Székely and Rizzo, 2013). Five float32 runs with other seeds
give ten distances, whose range is `distance_float32_*`; `distance_bundle` is the bundle's mean distance to the five.
`p_bundle` tests it against the first run: clips of one prompt are exchanged at random, 2,000 times; small means
different.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks.report import report
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.house_band.audio_features import band_shape, onset_times, spectral_centroid
from tinymusician.runtime.generator import GenerationRequest, load_generator

AT_ONCE, RUNS = 8, 5


def main() -> None:
    """The last line is JSON."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("float32", type=Path)
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("--samples", type=int, default=32)
    chosen = arguments.parse_args()
    prompts = load_prompts("band")
    texts = [text for split in ("test", "validation") for text in texts_of(prompts, split)][: chosen.samples]
    runs = [described(chosen.float32, texts, 1000 * number) for number in range(RUNS)]
    changed = described(chosen.bundle, texts, 1000 * RUNS)
    spread = np.concatenate(runs).std(0)
    between = [distance(a / spread, b / spread) for a, b in itertools.combinations(runs, 2)]
    figures = {
        "samples": len(texts),
        "distance_float32_least": min(between),
        "distance_float32_most": max(between),
        "distance_bundle": float(np.mean([distance(changed / spread, run / spread) for run in runs])),
        "p_bundle": exchanged(runs[0] / spread, changed / spread),
    }
    report("bundle_sound", figures, {"float32": chosen.float32.name, "bundle": chosen.bundle.name})


def described(bundle: Path, texts: list[str], seed: int) -> Any:
    """Timbre, centroid and onset rate of a clip for each text, [clips, 26]."""
    generator = load_generator(bundle)
    rate, result = generator.codec.shape.sampling_rate, []
    for start in range(0, len(texts), AT_ONCE):
        requests = [
            GenerationRequest(text, seconds=5, seed=seed + start + i)
            for i, text in enumerate(texts[start : start + AT_ONCE])
        ]
        for wave in generator.generate_batch(requests):
            seconds = len(wave) / rate
            rates = [np.log(spectral_centroid(wave, rate)), len(onset_times(wave, rate)) / seconds]
            result.append(np.concatenate([band_shape(wave, rate), rates]))
    return np.array(result)


def distance(one: Any, other: Any) -> float:
    """The energy distance of two sets."""
    return float(2 * cdist(one, other).mean() - cdist(one, one).mean() - cdist(other, other).mean())


def exchanged(one: Any, other: Any, times: int = 2000) -> float:
    """The share of exchanges of clips of the same prompt that give at least as large a distance."""
    random, result = np.random.default_rng(0), distance(one, other)
    larger = 0
    for _ in range(times):
        swap = random.integers(0, 2, (len(one), 1)).astype(bool)
        larger += distance(np.where(swap, other, one), np.where(swap, one, other)) >= result
    return (larger + 1) / (times + 1)


if __name__ == "__main__":
    main()

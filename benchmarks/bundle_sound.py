"""Whether a bundle sounds like the float32 one: samples of both, their spectra, and how far two float32 runs differ.

    python benchmarks/bundle_sound.py FLOAT32_BUNDLE BUNDLE [--samples 32]

Each clip is described by its timbre (24 bands), spectral centroid and onset rate, each scaled by its spread in float32.
The distance of two sets of clips is the energy distance (Székely and Rizzo, 2013). `distance_float32` is that of two
float32 runs with other seeds, `distance_bundle` the bundle's (a third set of seeds) to the first of them, and p-values
are of 2,000 permutations of the clips: small ones mean that the sets differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks.report import report
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.pretrain.listening import band_shape, onset_times, spectral_centroid
from tinymusician.runtime.player import Wish, open_player

AT_ONCE = 8


def main() -> None:
    """The last line is JSON."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("float32", type=Path)
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("--samples", type=int, default=32)
    chosen = arguments.parse_args()
    prompts = load_prompts("band")
    texts = [text for split in ("test", "validation") for text in texts_of(prompts, split)][: chosen.samples]
    first = described(chosen.float32, texts, 0)
    second = described(chosen.float32, texts, 1000)
    changed = described(chosen.bundle, texts, 2000)
    spread = np.concatenate([first, second]).std(0)
    figures: dict[str, float] = {"samples": len(texts)}
    for name, other in (("float32", second), ("bundle", changed)):
        figures[f"distance_{name}"], figures[f"p_{name}"] = compared(first / spread, other / spread)
    report("bundle_sound", figures, {"float32": chosen.float32.name, "bundle": chosen.bundle.name})


def described(bundle: Path, texts: list[str], seed: int) -> Any:
    """Timbre, centroid and onset rate of a clip for each text, [clips, 26]."""
    player = open_player(bundle)
    rate, found = player.codec.shape.sampling_rate, []
    for start in range(0, len(texts), AT_ONCE):
        wishes = [Wish(text, seconds=5, seed=seed + start + i) for i, text in enumerate(texts[start : start + AT_ONCE])]
        for wave in player.play_all(wishes):
            seconds = len(wave) / rate
            rates = [np.log(spectral_centroid(wave, rate)), len(onset_times(wave, rate)) / seconds]
            found.append(np.concatenate([band_shape(wave, rate), rates]))
    return np.array(found)


def compared(one: Any, other: Any, permutations: int = 2000) -> tuple[float, float]:
    """The energy distance of two sets, and the share of permutations with at least as large a one."""
    everything = np.concatenate([one, other])
    apart = cdist(everything, everything)
    random, size = np.random.default_rng(0), len(one)

    def distance(order: Any) -> float:
        a, b = order[:size], order[size:]
        return float(2 * apart[np.ix_(a, b)].mean() - apart[np.ix_(a, a)].mean() - apart[np.ix_(b, b)].mean())

    found = distance(np.arange(len(everything)))
    larger = sum(distance(random.permutation(len(everything))) >= found for _ in range(permutations))
    return found, (larger + 1) / (permutations + 1)


if __name__ == "__main__":
    main()

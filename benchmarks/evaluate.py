"""The speed of evaluation: embedding against the model's forward pass, two workers against one, FAD against SciPy.

    python benchmarks/evaluate.py [--clips 1000] [--large 60]

`fad_over_forward`: embedding and FAD of `--clips` clips of 10 s by band-clap, over the time that the model's forward
passes alone take, on features that are there already; `fad_over_forward_large` the same with random weights in the
shape of laion/larger_clap_music on `--large` clips (no FAD: they are too few). `workers2_speedup`: the same clips by
two actors of one processor each over one. `fad_10000x512_s`: FAD of two sets of 10,000 vectors of 512 numbers, and
SciPy's matrix square root on the same. All in one run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tinymusician.runtime.audio_reader import Wave

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from scipy.linalg import sqrtm
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from benchmarks.report import report
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.evaluate.embedding import in_batches, windows
from tinymusician.evaluate.frechet import fad, frechet_distance
from tinymusician.evaluate.reference_statistics import Gaussian, ReferenceStatistics

SECONDS, GROUP = 10, 20
_Result = TypeVar("_Result")


def noises(clips: int, rate: int, seed: int = 0) -> list[Wave]:
    """Clips of noise: how they sound makes no difference to the time."""
    random = np.random.default_rng(seed)
    return [random.normal(0, 0.1, SECONDS * rate).astype(np.float32) for _ in range(clips)]


def timed(work: Callable[[], _Result]) -> tuple[float, _Result]:
    """Seconds, and what came out."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def forward_alone(embedder: ClapEmbedder, clips: list[Wave], size: int) -> float:
    """Seconds of the model's forward passes on ready features, in the embedder's own batches."""
    features = [embedder.mel(torch.from_numpy(b)) for b in in_batches([windows(c, size) for c in clips], 32)]
    total = 0.0
    with torch.no_grad():
        for batch in features:
            long = torch.zeros(len(batch), 1, dtype=torch.bool)
            seconds, _ = timed(lambda: embedder.model.get_audio_features(input_features=batch, is_longer=long))  # noqa: B023
            total += seconds
    return total


def small(clips: int) -> float:
    """Embedding and FAD with band-clap over its forward passes."""
    embedder = ClapEmbedder()
    waves = noises(clips, embedder.rate)
    embedder(waves[:GROUP])
    reference = ReferenceStatistics.of(ClipEmbeddings.of(embedder(noises(200, embedder.rate, 1))))
    forward = forward_alone(embedder, waves, 5 * embedder.rate)
    whole, _ = timed(lambda: fad(ClipEmbeddings.of(embedder(waves)), reference))
    return whole / forward


def large(clips: int) -> float:
    """Embedding with random weights in the shape of laion/larger_clap_music over its forward passes."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = ClapConfig()
        config.audio_config.patch_embeds_hidden_size, config.audio_config.hidden_size = 128, 1024
        config.audio_config.depths = [2, 2, 12, 2]
        ClapModel(config).save_pretrained(folder)
        ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
        ClapEmbedder()._tokenizer.save_pretrained(folder)
        embedder = ClapEmbedder(folder)
    waves = noises(clips, embedder.rate)
    embedder(waves[:2])
    forward = forward_alone(embedder, waves, SECONDS * embedder.rate)
    whole, _ = timed(lambda: embedder(waves))
    return whole / forward


class EvaluateBenchmark:
    """What an actor does: embed a group of clips."""

    def __init__(self) -> None:
        self._embedder = ClapEmbedder()
        self._waves = noises(GROUP, self._embedder.rate)

    def embed(self) -> None:
        """Embed the group."""
        self._embedder(self._waves)


def by_workers(workers: int, groups: int) -> float:
    """Seconds that actors of one processor each take for all groups."""
    import ray
    from ray.util import ActorPool

    ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level="ERROR")
    try:
        kind = ray.remote(num_cpus=1)(EvaluateBenchmark)
        pool = ActorPool([kind.remote() for _ in range(workers)])

        def embed(count: int) -> None:
            list(pool.map_unordered(lambda actor, _: actor.embed.remote(), range(count)))

        embed(workers)  # each sets itself up
        seconds, _ = timed(lambda: embed(groups))
    finally:
        ray.shutdown()
    return seconds


def fad_of_many() -> tuple[float, float, float]:
    """Seconds of ours, seconds of SciPy's path, and how far the two results differ."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(512, 512)) / 20
    one, other = (ClipEmbeddings.of([random.normal(size=(10_000, 512)) @ mixing + shift]) for shift in (0.0, 0.05))
    ours, actual = timed(lambda: fad(one, ReferenceStatistics.of(other)))

    def scipys() -> float:
        first, second = (Gaussian.of(side.values) for side in (one, other))
        root = sqrtm(first.covariance @ second.covariance).real
        apart = np.square(first.mean - second.mean).sum()
        return float(apart + np.trace(first.covariance + second.covariance - 2 * root))

    theirs, expected = timed(scipys)
    assert frechet_distance(Gaussian.of(one.values), Gaussian.of(one.values)) < 1e-6
    return ours, theirs, abs(actual - expected)


def main() -> None:
    """The last line is JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clips", type=int, default=1000)
    options.add_argument("--large", type=int, default=60)
    chosen = options.parse_args()
    ours, scipys, difference = fad_of_many()
    groups = chosen.clips // GROUP
    figures = {
        "fad_10000x512_s": ours,
        "fad_10000x512_scipy_s": scipys,
        "fad_difference": difference,
        "fad_over_forward": small(chosen.clips),
        "fad_over_forward_large": large(chosen.large),
        "workers2_speedup": by_workers(1, groups) / by_workers(2, groups),
    }
    report("evaluate", figures, {"clips": chosen.clips, "large": chosen.large, "seconds": SECONDS})


if __name__ == "__main__":
    main()

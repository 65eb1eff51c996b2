"""The computations of an evaluation, each cached in the store: generate, embed, agreement, cost.

A clip's cache key is its model, prompt, seed and settings; the key of a group's features is its clips and the embedding
models. Every run that needs the same clips or features reuses them. `generate`, `embed`, `measure_agreement` and
`measure_cost` compute what the store lacks; the other methods only read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple, fields
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from jobs.evaluate.feature_models import AGAIN, FeatureModels, read_computed
from jobs.evaluate.models import EvaluatedModels
from jobs.evaluate.open import evaluation_prompts
from jobs.evaluate.recordings import Recordings
from jobs.worker.context import WorkerContext
from tinymusician.data.shards import Arrays, ShardCache, fingerprint
from tinymusician.errors import DataError, NotFoundError
from tinymusician.evaluate.agreement import agreement
from tinymusician.evaluate.degenerate import ClipHealth, examine
from tinymusician.evaluate.generators import GeneratedClip, SamplingSettings
from tinymusician.evaluate.reference_statistics import ReferenceStatistics, load_reference_statistics
from tinymusician.evaluate.results import InferenceCost
from tinymusician.inputs import input_path
from tinymusician.json_types import JsonObject
from tinymusician.models.likelihood import code_entropies, cross_entropies
from tinymusician.runtime.audio_reader import resampled
from tinymusician.runtime.cpus import available_cpus
from tinymusician.runtime.pcm16 import from_pcm16, to_pcm16


class Evaluator:
    """One evaluation's clips, features and measurements."""

    def __init__(self, context: WorkerContext) -> None:
        self.context, self.config, self.store = context, context.recipe.evaluate, context.run.store
        self.models = self.open_models()
        self.features = FeatureModels(context)
        self.recordings = Recordings(context, self.models, self.features)

    def open_models(self) -> EvaluatedModels:
        """The evaluated models."""
        return EvaluatedModels(self.context)

    @property
    def settings(self) -> SamplingSettings:
        """The sampling settings of all models."""
        return self.models.settings

    @cached_property
    def all_prompts(self) -> list[str]:
        """The prompts of the models: those of `evaluate.prompts`, or the captions of the real clips."""
        if self.config.prompts is None:
            return self.recordings.reference.captions
        return evaluation_prompts(self.config, self.context.recipe.sequences.prompts)

    @property
    def vector_facts(self) -> JsonObject:
        """What the vectors of clips depend on beside their audio: the embedding model, and the length of clips."""
        return {**self.features.embedder.facts, "clip_seconds": self.config.seconds}

    @cached_property
    def given_statistics(self) -> ReferenceStatistics:
        """The statistics that are given instead of real clips.

        Raises:
            DataError: they cannot be read, or are of another embedding model.
        """
        config, embedder = self.config.reference, self.features.embedder
        assert config is not None
        assert config.kind == "statistics"
        statistics = load_reference_statistics(input_path(config.file))
        statistics.check_embedding(self.vector_facts, config.file)
        (vectors,) = embedder([np.zeros(embedder.rate, np.float32)])
        if vectors.shape[1] != statistics.dimension:
            raise DataError(
                f"{config.file}: has {statistics.dimension} dimensions, and evaluate.embedding {vectors.shape[1]}"
            )
        return statistics

    # Clips

    def prompts(self, clips: Sequence[int]) -> list[str]:
        """The prompts of these clips."""
        return [self.all_prompts[clip] for clip in clips]

    def seed(self, clip: int) -> int:
        """The seed of a clip, the same for all models."""
        return self.config.seed * 1_000_000 + clip

    def clip_cache(self, model_id: str, clips: Sequence[int]) -> ShardCache:
        """The cache of a model's clips, one shard each."""
        facts = {"model": self.models.facts(model_id).digest, **asdict(self.settings)}
        facts |= {"device": self.models.device(model_id)}
        facts |= {"torch": metadata.version("torch"), "onnxruntime": metadata.version("onnxruntime")}
        facts |= {"health": [field.name for field in fields(ClipHealth)]}
        names = [fingerprint({"prompt": self.all_prompts[clip], "seed": self.seed(clip)}) for clip in clips]
        return ShardCache(self.store, "clips", facts, names=names)

    def generate(self, model_id: str, clips: Sequence[int]) -> None:
        """Generate the clips that the cache lacks, in one batch."""
        cache = self.clip_cache(model_id, clips)
        if not (missing := cache.missing()):
            return
        generator, numbers = self.models.load(model_id), [clips[index] for index in missing]
        seeds = [self.seed(clip) for clip in numbers]
        generated = generator.generate(self.prompts(numbers), seeds, self.settings)
        for index, number, clip in zip(missing, numbers, generated, strict=True):
            cache.write(index, _as_arrays(clip, generator.rate))
            print(f"generated {model_id} clip {number}", flush=True)

    def generated(self, model_id: str, clips: Sequence[int]) -> list[Arrays]:
        """A model's clips: `codes` [K, T], `wave` as 16-bit integers, and `health` (the fields of `ClipHealth`).

        Raises:
            NotFoundError: some were not generated.
        """
        cache = self.clip_cache(model_id, clips)
        if missing := cache.missing():
            numbers = ", ".join(str(clips[index]) for index in missing[:5])
            raise NotFoundError(f"clips of {model_id}: {len(missing)} were not generated ({numbers}); {AGAIN}")
        return [cache.read(index) for index in range(len(clips))]

    # Features

    def embed(self, model_id: str, clips: Sequence[int]) -> None:
        """Compute the features of a model's clips that the cache lacks."""
        cache = self._clip_feature_cache(model_id, clips)
        if not cache.missing():
            return
        rate, generated = self.models.facts(model_id).rate, self.generated(model_id, clips)
        waves = [from_pcm16(clip["wave"]) for clip in generated]
        arrays = self.features.compute(lambda target_rate: [resampled(wave, rate, target_rate) for wave in waves])
        arrays["health"] = np.stack([clip["health"] for clip in generated])
        arrays["valid"] = arrays["health"][:, 0] > 0
        cache.write(0, arrays)

    def model_features(self, model_id: str, clips: Sequence[int]) -> Arrays:
        """Embeddings, class probabilities and health of a model's clips; `valid` marks those that are finite.

        Raises:
            NotFoundError: they were not computed.
        """
        return read_computed(self._clip_feature_cache(model_id, clips), f"features of {model_id}")

    def _clip_feature_cache(self, model_id: str, clips: Sequence[int]) -> ShardCache:
        return self.features.cache({"clips": self._clip_keys(model_id, clips)})

    def _clip_keys(self, model_id: str, clips: Sequence[int]) -> list[str]:
        cache = self.clip_cache(model_id, clips)
        return [cache.fingerprint, *cache.names]

    # Agreement and cost

    def measure_agreement(self, model_id: str, clips: Sequence[int]) -> None:
        """Compare a model with the teacher along the teacher's clips, and score the model's own clips."""
        cache = self._agreement_cache(model_id, clips)
        if not cache.missing():
            return
        guidance, prompts = self.settings.guidance, self.prompts(clips)
        codes = np.stack([clip["codes"] for clip in self.generated("teacher", clips)]).astype(np.int64)
        model_codes = np.stack([clip["codes"] for clip in self.generated(model_id, clips)]).astype(np.int64)
        logits = self.models.load(model_id).forced(prompts, codes, guidance)
        teacher = self.models.load("teacher")
        arrays = agreement(teacher.forced(prompts, codes, guidance), logits, guidance).arrays()
        nll = cross_entropies(teacher.forced(prompts, model_codes, guidance)[: len(clips)], model_codes)
        cache.write(0, {**arrays, "teacher_nll": nll.numpy(), "code_entropy": code_entropies(model_codes)})

    def agreement(self, model_id: str, clips: Sequence[int]) -> Arrays:
        """The arrays of `Agreement`, `teacher_nll` and `code_entropy` of these clips.

        Raises:
            NotFoundError: they were not measured.
        """
        return read_computed(self._agreement_cache(model_id, clips), f"agreement of {model_id}")

    def _agreement_cache(self, model_id: str, clips: Sequence[int]) -> ShardCache:
        keys = {"teacher": self._clip_keys("teacher", clips), "model": self._clip_keys(model_id, clips)}
        return ShardCache(self.store, "agreement", {**keys, "guidance": self.settings.guidance}, 1)

    def measure_cost(self, model_id: str) -> None:
        """Measure the cost of generation on this machine, once per run, in a process of its own.

        Raises:
            DataError: the process failed.
        """
        if self.context.run.measurement("cost", model_id, InferenceCost) is not None:
            return
        request: dict[str, JsonValue] = {
            "run": self.context.run_id,
            "store": self.context.store_url,
            "record": self.context.record_sha256,
            "working_keys": [key.hex() for key in self.context.working_keys or ()],
            "model": model_id,
            "device": self.context.device,
            "prompts": list(self.prompts(range(min(self.config.cost_runs, self.config.clips)))),
        }
        everything = {**os.environ, "OMP_NUM_THREADS": str(available_cpus())}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "jobs.evaluate.cost_process"],
            input=json.dumps(request),
            cwd=Path(__file__).parents[2],
            env=everything,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise DataError(f"cost of {model_id}: could not be measured ({' '.join(ended.stderr.split())[-300:]})")
        cost = InferenceCost.model_validate_json(ended.stdout.splitlines()[-1])
        self.context.run.write_measurement("cost", model_id, cost)

    def cost(self, model_id: str) -> InferenceCost:
        """The cost that this run measured.

        Raises:
            NotFoundError: it was not measured.
        """
        cost = self.context.run.measurement("cost", model_id, InferenceCost)
        if cost is None:
            raise NotFoundError(f"cost of {model_id}: was not measured; {AGAIN}")
        return cost


def _as_arrays(clip: GeneratedClip, rate: int) -> Arrays:
    """A clip with 16-bit samples, as in a file, and the health of its original samples."""
    health = examine(clip.wave, rate, clip.codes)
    wave = to_pcm16(np.nan_to_num(clip.wave))
    return {"codes": clip.codes.astype(np.int16), "wave": wave, "health": np.array(astuple(health), np.float64)}

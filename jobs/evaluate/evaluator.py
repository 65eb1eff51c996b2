"""The computations of an evaluation, each cached in the store: generate, embed, agreement, cost.

A clip's cache key is its model, prompt, seed and settings; the key of a group's features is its clips and the embedding
models. Every run that needs the same clips or features reuses them. `generate`, `embed`, `embed_reference`,
`measure_agreement` and `measure_cost` compute what the store lacks; the other methods only read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from jobs.evaluate.laion_clap_actor import LaionClapActor
from jobs.evaluate.models import EvaluatedModels
from jobs.evaluate.open import open_embedder, open_reference, open_tagger
from jobs.worker.context import WorkerContext
from tinymusician.data.shards import Arrays, ShardCache, fingerprint
from tinymusician.errors import DataError, NotFoundError
from tinymusician.evaluate.agreement import agreement
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.degenerate import ClipHealth, examine
from tinymusician.evaluate.embedding import AudioClassifier, Embedder, TextEmbedder
from tinymusician.evaluate.generators import GeneratedClip, SamplingSettings
from tinymusician.evaluate.reference import ReferenceSet
from tinymusician.evaluate.results import InferenceCost, ReferenceAudio
from tinymusician.models.likelihood import code_entropies, cross_entropies
from tinymusician.runtime.audio_reader import Wave, resampled


class Evaluator:
    """One evaluation's clips, features and measurements."""

    def __init__(self, context: WorkerContext) -> None:
        self.context, self.config, self.store = context, context.recipe.evaluate, context.run.store
        self.models = self.open_models()

    def open_models(self) -> EvaluatedModels:
        """The evaluated models."""
        return EvaluatedModels(self.context)

    @property
    def settings(self) -> SamplingSettings:
        """The sampling settings of all models."""
        return self.models.settings

    @cached_property
    def reference(self) -> ReferenceSet:
        """The real clips."""
        config = self.config
        assert config.reference is not None
        corpus = self.context.cache / "corpus"
        return open_reference(config.reference, config.clips, config.seconds, config.seed, corpus)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedding model of FAD and KAD."""
        return open_embedder(self.config.embedding, self.context.device)

    @cached_property
    def clap(self) -> TextEmbedder:
        """The embedding model of the CLAP score."""
        shared = self.config.clap in ("embedding", getattr(self.config.embedding, "model", ""))
        if shared and isinstance(self.embedder, ClapEmbedder | LaionClapActor):
            return self.embedder
        return ClapEmbedder(self.config.clap, self.context.device)

    @cached_property
    def tagger(self) -> AudioClassifier | None:
        """The classifier, if the recipe names one."""
        return open_tagger(self.config.tagger, self.context.device) if self.config.tagger else None

    # Clips

    def prompts(self, clips: Sequence[int]) -> list[str]:
        """The captions of these clips."""
        return [self.reference.captions[clip] for clip in clips]

    def seed(self, clip: int) -> int:
        """The seed of a clip, the same for all models."""
        return self.config.seed * 1_000_000 + clip

    def clip_cache(self, model_id: str, clips: Sequence[int]) -> ShardCache:
        """The cache of a model's clips, one shard each."""
        facts = {"model": self.models.facts(model_id).digest, **asdict(self.settings), "device": self.context.device}
        facts |= {"torch": metadata.version("torch"), "onnxruntime": metadata.version("onnxruntime")}
        facts |= {"health": [field.name for field in fields(ClipHealth)]}
        names = [fingerprint({"prompt": self.reference.captions[clip], "seed": self.seed(clip)}) for clip in clips]
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
            raise NotFoundError(f"clips of {model_id}: {len(missing)} were not generated ({numbers}); {_AGAIN}")
        return [cache.read(index) for index in range(len(clips))]

    # Features

    def embed(self, model_id: str, clips: Sequence[int]) -> None:
        """Compute the features of a model's clips that the cache lacks."""
        cache = self._clip_feature_cache(model_id, clips)
        if not cache.missing():
            return
        rate, generated = self.models.facts(model_id).rate, self.generated(model_id, clips)
        waves = [clip["wave"].astype(np.float32) / 32767 for clip in generated]
        arrays = self._embed(lambda target_rate: [resampled(wave, rate, target_rate) for wave in waves])
        arrays["health"] = np.stack([clip["health"] for clip in generated])
        arrays["valid"] = arrays["health"][:, 0] > 0
        cache.write(0, arrays)

    def features(self, model_id: str, clips: Sequence[int]) -> Arrays:
        """Embeddings, class probabilities and health of a model's clips; `valid` marks those that are finite.

        Raises:
            NotFoundError: they were not computed.
        """
        return _read(self._clip_feature_cache(model_id, clips), f"features of {model_id}")

    def embed_reference(self, clips: Sequence[int], reconstructed: bool = False) -> None:
        """Compute the features of real clips, as they are or after the teacher's codec.

        Raises:
            DataError: a clip cannot be read, and `evaluate.on_unreadable` is `refuse`.
        """
        cache = self._reference_feature_cache(clips, reconstructed)
        if cache.missing():
            conversions, unreadable = Counter[str](), list[str]()
            first = [
                self._real_wave(clip, reconstructed, self.embedder.rate, conversions, unreadable) for clip in clips
            ]

            def at(rate: int) -> list[Wave]:
                again = rate != self.embedder.rate
                waves = (
                    [self._real_wave(clip, reconstructed, rate, Counter(), []) for clip in clips] if again else first
                )
                return [np.zeros(rate, np.float32) if wave is None else wave for wave in waves]

            arrays = self._embed(at)
            arrays["valid"] = np.array([wave is not None for wave in first])
            audio = ReferenceAudio(conversions=dict(conversions), unreadable=tuple(unreadable))
            cache.write(0, arrays, audio.model_dump(mode="json"))
        if self.config.on_unreadable == "refuse" and (unread := self.reference_audio(clips, reconstructed).unreadable):
            raise DataError(unread[0])

    def reference_features(self, clips: Sequence[int], reconstructed: bool = False) -> Arrays:
        """Embeddings and class probabilities of real clips; `valid` marks those that could be read.

        Raises:
            NotFoundError: they were not computed.
        """
        return _read(self._reference_feature_cache(clips, reconstructed), "features of the real clips")

    def reference_audio(self, clips: Sequence[int], reconstructed: bool = False) -> ReferenceAudio:
        """How these real clips were read."""
        return ReferenceAudio.model_validate(self._reference_feature_cache(clips, reconstructed).details(0))

    def _real_wave(
        self, clip: int, reconstructed: bool, rate: int, conversions: Counter[str], unreadable: list[str]
    ) -> Wave | None:
        """A real clip at a rate, None if it cannot be read; notes its conversions, or why it cannot be read."""
        try:
            loaded = self.reference.wave(clip, self.models.codec().rate if reconstructed else rate)
        except DataError as error:
            print(f"skipped: {error}", flush=True)
            unreadable.append(str(error))
            return None
        conversions.update(loaded.changed)
        if not reconstructed:
            return loaded.wave
        return resampled(self.models.codec().reconstruct(loaded.wave), self.models.codec().rate, rate)

    def _embed(self, at: Callable[[int], list[Wave]]) -> Arrays:
        """Embeddings (`vectors`, `clap`) with the owners of their windows, and classes; `at` gives clips at a rate."""
        arrays: Arrays = {}
        embedders: dict[str, Embedder] = {"vectors": self.embedder}
        if self.clap is not self.embedder:
            embedders["clap"] = self.clap
        for name, embedder in embedders.items():
            embeddings = embedder(at(embedder.rate))
            arrays[name] = np.concatenate(embeddings).astype(np.float32)
            arrays[f"{name}_owners"] = np.repeat(np.arange(len(embeddings)), [len(clip) for clip in embeddings])
        if self.tagger is not None:
            classes = self.tagger(at(self.tagger.rate))
            arrays |= {f"classes/{question}": values for question, values in classes.items()}
        return arrays

    def _clip_feature_cache(self, model_id: str, clips: Sequence[int]) -> ShardCache:
        return self._feature_cache({"clips": self._clip_keys(model_id, clips)})

    def _reference_feature_cache(self, clips: Sequence[int], reconstructed: bool) -> ShardCache:
        codec = {"codec": self.models.facts("teacher").digest} if reconstructed else {}
        return self._feature_cache({"real": [self._reference_facts(clip) for clip in clips], **codec})

    def _feature_cache(self, subject: Mapping[str, object]) -> ShardCache:
        tagger = self.tagger.facts if self.tagger is not None else None
        facts = {"embedding": self.embedder.facts, "clap": self.clap.facts, "tagger": tagger, "layout": 3}
        return ShardCache(self.store, "features", facts, names=[fingerprint(subject)])

    def _clip_keys(self, model_id: str, clips: Sequence[int]) -> list[str]:
        cache = self.clip_cache(model_id, clips)
        return [cache.fingerprint, *cache.names]

    def _reference_facts(self, clip: int) -> dict[str, object]:
        try:
            return {**self.reference.facts(clip), "seconds": self.config.seconds}
        except DataError as error:
            return {"damaged": str(error)}

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
        return _read(self._agreement_cache(model_id, clips), f"agreement of {model_id}")

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
            "model": model_id,
            "device": self.context.device,
            "prompts": list(self.prompts(range(min(self.config.cost_runs, self.config.clips)))),
        }
        everything = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "jobs.evaluate.cost_process", json.dumps(request)],
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
            raise NotFoundError(f"cost of {model_id}: was not measured; {_AGAIN}")
        return cost


_AGAIN = "run the evaluation again with `--from generate`"


def _read(cache: ShardCache, what: str) -> Arrays:
    if cache.missing():
        raise NotFoundError(f"{what}: not in {cache.store.url}; {_AGAIN}")
    return cache.read(0)


def _as_arrays(clip: GeneratedClip, rate: int) -> Arrays:
    """A clip with 16-bit samples, as in a file, and the health of its original samples."""
    health = examine(clip.wave, rate, clip.codes)
    wave = np.round(np.clip(np.nan_to_num(clip.wave), -1, 1) * 32767).astype(np.int16)
    return {"codes": clip.codes.astype(np.int16), "wave": wave, "health": np.array(astuple(health), np.float64)}

"""What every worker of an evaluation has at hand, and what it can do with it.

Clips are kept in the store one by one, known by who played them, the prompt, the seed and the settings; what was heard
of them in groups, known by those clips and the models that heard them. Whatever is kept is not made again, by whichever
run it was asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jobs.distill.models import untrained_student
from jobs.evaluate.laion_clap_actor import LaionClapActor
from jobs.evaluate.open import open_embedder, open_reference, open_tagger
from jobs.worker.context import WorkerContext
from jobs.worker.model_refs import SPECIAL_MODELS, check_guidance, fetch_artifact, split_label
from tinymusician.artifacts.manifest import fetch, find
from tinymusician.data.shards import Arrays, ShardCache, fingerprint
from tinymusician.errors import DataError, NotFoundError
from tinymusician.evaluate.agreement import agreement
from tinymusician.evaluate.audio import Wave, resampled
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.degenerate import examine
from tinymusician.evaluate.embedding import AudioClassifier, Embedder, TextEmbedder
from tinymusician.evaluate.generators import GeneratedClip, Generator, SamplingSettings, TorchGenerator, open_generator
from tinymusician.evaluate.reference import ReferenceSet
from tinymusician.models.likelihood import cross_entropies, varieties
from tinymusician.recipe import EvaluateConfig, Recipe
from tinymusician.runtime.bundle import MANIFEST


@dataclass(frozen=True)
class ModelFacts:
    """A musician's `digest`, its clips' `rate`, and its `size` in bytes."""

    digest: str
    rate: int
    size: int


class Evaluator:
    """The models, the clips, and what is kept of them."""

    def __init__(self, context: WorkerContext) -> None:
        self.context, self.recipe, self.config = context, context.recipe, context.recipe.evaluate
        self.store = context.run.store
        self._open: dict[str, Generator] = {}
        self._facts: dict[str, ModelFacts] = {}

    @cached_property
    def settings(self) -> SamplingSettings:
        """How everybody is asked to play: as the recipe asks its teacher."""
        teacher = self.recipe.teacher
        return SamplingSettings(self.config.seconds, teacher.guidance_scale, teacher.top_k, teacher.temperature)

    @cached_property
    def reference(self) -> ReferenceSet:
        """The real clips."""
        config = self.config
        assert config.reference is not None
        corpus = self.context.cache / "corpus"
        return open_reference(config.reference, config.clips, config.seconds, config.seed, corpus)

    @cached_property
    def embedder(self) -> Embedder:
        """The space of FAD and KAD."""
        return open_embedder(self.config.embedding, self.context.device)

    @cached_property
    def clap(self) -> TextEmbedder:
        """The space of the CLAP score."""
        shared = self.config.clap in ("embedding", getattr(self.config.embedding, "model", ""))
        if shared and isinstance(self.embedder, ClapEmbedder | LaionClapActor):
            return self.embedder
        return ClapEmbedder(self.config.clap, self.context.device)

    @cached_property
    def tagger(self) -> AudioClassifier | None:
        """The classifier, if one is asked for."""
        return open_tagger(self.config.tagger, self.context.device) if self.config.tagger else None

    def generator(self, model_id: str) -> Generator:
        """Whoever plays under this name; the last one stays at hand, and so does the teacher."""
        model_id = split_label(model_id)[1]
        if model_id not in self._open:
            self._open = {name: generator for name, generator in self._open.items() if name == "teacher"}
            self._open[model_id] = self._opened(model_id)
        return self._open[model_id]

    def facts(self, model_id: str) -> ModelFacts:
        """What must be known of a musician to find its clips, without opening it again."""
        if model_id not in self._facts:
            generator = self.generator(model_id)
            self._facts[model_id] = ModelFacts(generator.digest, generator.rate, sum(generator.sizes.values()))
        return self._facts[model_id]

    def location(self, model_id: str) -> str:
        """The folder, hub id or packaged name behind a voice, fetched here if it is an artifact."""
        name = self.recipe.teacher.model if model_id == "teacher" else model_id
        if "@sha256:" not in name:
            return name
        manifest = find(self.store, name)
        if not any(file.path == MANIFEST for file in manifest.files):
            return fetch_artifact(self.store, name, self.context.cache)[0]
        folder = self.context.cache / "bundles" / manifest.digest
        if not (folder / ".whole").exists():
            fetch(self.store, manifest, folder)
            (folder / ".whole").touch()
        return str(folder)

    def _opened(self, model_id: str) -> Generator:
        if model_id == "untrained":
            return TorchGenerator(*untrained_student(self.recipe), self.context.device)
        generator = open_generator(self.location(model_id), self.context.device, self.context.threads)
        if generator.guidance_range is not None:
            check_guidance(model_id, self.settings.guidance, generator.guidance_range)
        return generator

    def prompts(self, clips: Sequence[int]) -> list[str]:
        """The captions of these clips."""
        return [self.reference.captions[clip] for clip in clips]

    def seed(self, clip: int) -> int:
        """The seed of a clip, for whoever plays it."""
        return self.config.seed * 1_000_000 + clip

    def clips(self, model_id: str, clips: Sequence[int]) -> ShardCache:
        """Where the clips of a voice are kept, one shard each."""
        facts = {"musician": self.facts(model_id).digest, **self.settings.__dict__, "device": self.context.device}
        facts |= {"torch": metadata.version("torch"), "onnxruntime": metadata.version("onnxruntime")}
        names = [fingerprint({"prompt": self.reference.captions[clip], "seed": self.seed(clip)}) for clip in clips]
        return ShardCache(self.store, "clips", facts, names=names)

    def generated(self, model_id: str, clips: Sequence[int]) -> list[Arrays]:
        """The clips of a voice; those that the store lacks are played now, side by side."""
        cache = self.clips(model_id, clips)
        missing = cache.missing()
        if missing:
            generator = self.generator(model_id)
            to_generate = [clips[index] for index in missing]
            clips_made = generator.generate(
                self.prompts(to_generate), [self.seed(clip) for clip in to_generate], self.settings
            )
            for index, clip, one in zip(missing, to_generate, clips_made, strict=True):
                cache.write(index, _as_arrays(one, generator.rate))
                print(f"played {model_id} {clip}", flush=True)
        return [cache.read(index) for index in range(len(clips))]

    def features(self, model_id: str, clips: Sequence[int]) -> Arrays:
        """Vectors, classes and health of clips of a voice."""
        cache = self._feature_cache(fingerprint({"clips": self._names(model_id, clips)}))
        if cache.missing():
            rate = self.facts(model_id).rate
            generated = self.generated(model_id, clips)
            waves = [clip["wave"].astype(np.float32) / 32767 for clip in generated]
            arrays = self._embed(lambda target_rate: [resampled(wave, rate, target_rate) for wave in waves])
            arrays["health"] = np.stack([clip["health"] for clip in generated])
            arrays["kept"] = arrays["health"][:, 0] > 0
            cache.write(0, arrays)
        return cache.read(0)

    def real_features(self, clips: Sequence[int], coded: bool = False) -> Arrays:
        """Vectors and classes of real clips, or of what is left of them behind the teacher's codec (`coded`).

        `kept` is false for those that could not be read.

        Raises:
            DataError: one cannot be read, and the recipe says to refuse.
        """
        facts: dict[str, Any] = {"real": [self._facts_of(clip) for clip in clips]}
        facts |= {"codec": self.facts("teacher").digest} if coded else {}
        cache = self._feature_cache(fingerprint({**facts, "rates": "each hearer's own"}))
        if cache.missing():
            notes = Counter[str]()
            first = [self._real(clip, coded, self.embedder.rate, notes) for clip in clips]

            def at(rate: int) -> list[Wave]:
                is_embedder_rate = rate == self.embedder.rate
                waves = first if is_embedder_rate else [self._real(clip, coded, rate, Counter()) for clip in clips]
                return [np.zeros(rate, np.float32) if wave is None else wave for wave in waves]

            arrays = self._embed(at)
            arrays["kept"] = np.array([wave is not None for wave in first])
            arrays["told"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
            cache.write(0, arrays)
        cached = cache.read(0)
        if self.config.on_unreadable == "refuse" and not cached["kept"].all():
            notes = json.loads(cached["told"].tobytes())
            raise DataError(next(what.removeprefix(_SKIPPED) for what in notes if what.startswith(_SKIPPED)))
        return cached

    def _real(self, clip: int, coded: bool, rate: int, notes: Counter[str]) -> Wave | None:
        """A real clip at a rate, None if it cannot be read; `told` counts what was done."""
        try:
            loaded = self.reference.wave(clip, self._codec().rate if coded else rate)
        except DataError as error:
            print(f"{_SKIPPED}{error}", flush=True)
            notes.update([f"{_SKIPPED}{error}"])
            return None
        notes.update(loaded.changed)
        return resampled(self._codec().coded(loaded.wave), self._codec().rate, rate) if coded else loaded.wave

    def _codec(self) -> TorchGenerator:
        """The teacher, for its codec."""
        teacher = self.generator("teacher")
        assert isinstance(teacher, TorchGenerator), "a teacher is a model, never a bundle"
        return teacher

    def agreement(self, model_id: str, clips: Sequence[int]) -> Arrays:
        """A voice against the teacher along the teacher's clips, and the teacher's surprise at the voice's own."""
        names = {"teacher": self._names("teacher", clips), "voice": self._names(model_id, clips)}
        guidance = self.settings.guidance
        cache = ShardCache(self.store, "agreements", {**names, "guidance": guidance}, 1)
        if cache.missing():
            codes = np.stack([clip["codes"] for clip in self.generated("teacher", clips)]).astype(np.int64)
            model_codes = np.stack([clip["codes"] for clip in self.generated(model_id, clips)]).astype(np.int64)
            prompts = self.prompts(clips)
            logits = self.generator(model_id).forced(prompts, codes, guidance)
            teacher = self.generator("teacher")
            arrays = agreement(teacher.forced(prompts, codes, guidance), logits, guidance).arrays()
            surprise = cross_entropies(teacher.forced(prompts, model_codes, guidance)[: len(clips)], model_codes)
            arrays |= {"surprise": surprise.numpy(), "variety": varieties(model_codes)}
            cache.write(0, arrays)
        return cache.read(0)

    def cost(self, model_id: str) -> dict[str, Any]:
        """What a voice's playing costs on this machine, measured once a run in a process of its own."""
        key = self.context.run.key(f"cost/{fingerprint({'voice': model_id})[:16]}.json")
        try:
            cost: dict[str, Any] = json.loads(self.store.get(key))
            return cost
        except NotFoundError:
            pass
        request = {
            "run": self.context.run_id,
            "store": self.context.store_url,
            "voice": model_id,
            "device": self.context.device,
            "prompts": self.prompts(range(min(self.config.cost_runs, self.config.clips))),
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
        cost = json.loads(ended.stdout.splitlines()[-1])
        self.store.put(key, json.dumps(cost).encode())
        return cost

    def _embed(self, at: Callable[[int], list[Wave]]) -> Arrays:
        """Vectors by the embedder and CLAP with their clips, and the tagger's classes; `at` gives clips at a rate."""
        arrays: Arrays = {}
        embedders = {"vectors": self.embedder} | ({} if self.clap is self.embedder else {"clap": self.clap})
        for name, embedder in embedders.items():
            embeddings = embedder(at(embedder.rate))
            arrays[name] = np.concatenate(embeddings).astype(np.float32)
            arrays[f"{name}_owners"] = np.repeat(np.arange(len(embeddings)), [len(clip) for clip in embeddings])
        if self.tagger is not None:
            classes = self.tagger(at(self.tagger.rate))
            arrays |= {f"classes/{question}": values for question, values in classes.items()}
        return arrays

    def _feature_cache(self, name: str) -> ShardCache:
        facts: dict[str, Any] = {"embedding": self.embedder.facts, "clap": self.clap.facts, "layout": 1}
        facts["tagger"] = self.tagger.facts if self.tagger is not None else None
        return ShardCache(self.store, "heard", facts, names=[name])

    def _names(self, model_id: str, clips: Sequence[int]) -> list[str]:
        cache = self.clips(model_id, clips)
        return [cache.fingerprint, *cache.names]

    def _facts_of(self, clip: int) -> dict[str, Any]:
        try:
            return {**self.reference.facts(clip), "seconds": self.config.seconds}
        except DataError as error:
            return {"damaged": str(error)}


_SKIPPED = "skipped: "
AGREEMENT_GROUP = 8
"""Clips that are held against the teacher at once: the logits of two passes are large."""
REAL, RECONSTRUCTED = "real", "real, coded"
"""The voices of the reference, as it is and behind the teacher's codec: nobody who plays through it can be nearer."""


def evaluated_models(recipe: Recipe) -> list[str]:
    """Whoever plays: the models that are asked for, each once."""
    return list(dict.fromkeys(recipe.evaluate.models))


def agreement_clips(config: EvaluateConfig) -> int:
    """How many of the teacher's clips the models are held against."""
    return min(config.agreement_clips, config.clips)


def chunk_ranges(count: int, size: int) -> list[range]:
    """The numbers 0 to `count`, `size` at a time."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def short_label(model_id: str) -> str:
    """A voice's short name, for people: its label, if it was given one."""
    given, model_id = split_label(model_id)
    if given:
        return given
    if model_id in (*SPECIAL_MODELS, REAL, RECONSTRUCTED):
        return model_id
    name, _, digest = model_id.partition("@sha256:")
    return f"{name}@{digest[:8]}" if digest else Path(model_id).name


def labels(model_ids: Sequence[str]) -> dict[str, str]:
    """Every voice's short name, or its whole one where two would share the short one."""
    times = Counter(short_label(model_id) for model_id in model_ids)
    return {
        model_id: short_label(model_id) if times[short_label(model_id)] == 1 else model_id for model_id in model_ids
    }


def _as_arrays(played: GeneratedClip, rate: int) -> Arrays:
    """A clip with 16 bits a sample, as it would be in a file, and the health it had before."""
    health = examine(played.wave, rate, played.codes)
    wave = np.round(np.clip(np.nan_to_num(played.wave), -1, 1) * 32767).astype(np.int16)
    return {"codes": played.codes.astype(np.int16), "wave": wave, "health": np.array(astuple(health), np.float64)}

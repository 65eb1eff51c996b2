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

from jobs.laion import LaionClapActor
from jobs.model import STAND_INS, check_guidance, fetch_artifact, labelled
from jobs.pair import untrained
from jobs.worker import WorkerContext
from tinymusician.artifacts.manifest import fetch, find
from tinymusician.data.shards import Arrays, ShardCache, fingerprint
from tinymusician.errors import DataError, NotFoundError
from tinymusician.evaluate.agreement import agreement
from tinymusician.evaluate.audio import Wave, resampled
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.embedders import open_embedder
from tinymusician.evaluate.embedding import AudioClassifier, Embedder, TextEmbedder
from tinymusician.evaluate.guards import examine
from tinymusician.evaluate.musicians import GeneratedClip, Generator, SamplingSettings, TorchGenerator, open_generator
from tinymusician.evaluate.reference import ReferenceSet, open_reference
from tinymusician.evaluate.taggers import open_tagger
from tinymusician.models.likelihood import cross_entropies, varieties
from tinymusician.recipe import EvaluateConfig, LaionClapEmbeddingConfig, Recipe
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
        self.context, self.recipe, self.asked = context, context.recipe, context.recipe.evaluate
        self.store = context.run.store
        self._open: dict[str, Generator] = {}
        self._known: dict[str, ModelFacts] = {}

    @cached_property
    def settings(self) -> SamplingSettings:
        """How everybody is asked to play: as the recipe asks its teacher."""
        teacher = self.recipe.teacher
        return SamplingSettings(self.asked.seconds, teacher.guidance, teacher.top_k, teacher.temperature)

    @cached_property
    def reference(self) -> ReferenceSet:
        """The real clips."""
        asked = self.asked
        assert asked.reference is not None
        corpus = self.context.cache / "corpus"
        return open_reference(asked.reference, asked.clips, asked.seconds, asked.seed, corpus)

    @cached_property
    def embedder(self) -> Embedder:
        """The space of FAD and KAD."""
        if isinstance(self.asked.embedding, LaionClapEmbeddingConfig):
            return LaionClapActor(self.asked.embedding)
        return open_embedder(self.asked.embedding, self.context.device)

    @cached_property
    def clap(self) -> TextEmbedder:
        """The space of the CLAP score."""
        own = self.asked.clap in ("embedding", getattr(self.asked.embedding, "model", ""))
        if own and isinstance(self.embedder, ClapEmbedder | LaionClapActor):
            return self.embedder
        return ClapEmbedder(self.asked.clap, self.context.device)

    @cached_property
    def tagger(self) -> AudioClassifier | None:
        """The classifier, if one is asked for."""
        return open_tagger(self.asked.tagger, self.context.device) if self.asked.tagger else None

    def musician(self, voice: str) -> Generator:
        """Whoever plays under this name; the last one stays at hand, and so does the teacher."""
        voice = labelled(voice)[1]
        if voice not in self._open:
            self._open = {name: musician for name, musician in self._open.items() if name == "teacher"}
            self._open[voice] = self._opened(voice)
        return self._open[voice]

    def known(self, voice: str) -> ModelFacts:
        """What must be known of a musician to find its clips, without opening it again."""
        if voice not in self._known:
            musician = self.musician(voice)
            self._known[voice] = ModelFacts(musician.digest, musician.rate, sum(musician.sizes.values()))
        return self._known[voice]

    def location(self, voice: str) -> str:
        """The folder, hub id or packaged name behind a voice, fetched here if it is an artifact."""
        name = self.recipe.teacher.model if voice == "teacher" else voice
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

    def _opened(self, voice: str) -> Generator:
        if voice == "untrained":
            return TorchGenerator(*untrained(self.recipe), self.context.device)
        musician = open_generator(self.location(voice), self.context.device, self.context.threads)
        if musician.guidance_range is not None:
            check_guidance(voice, self.settings.guidance, musician.guidance_range)
        return musician

    def prompts(self, clips: Sequence[int]) -> list[str]:
        """The captions of these clips."""
        return [self.reference.captions[clip] for clip in clips]

    def seed(self, clip: int) -> int:
        """The seed of a clip, for whoever plays it."""
        return self.asked.seed * 1_000_000 + clip

    def clips(self, voice: str, clips: Sequence[int]) -> ShardCache:
        """Where the clips of a voice are kept, one shard each."""
        facts = {"musician": self.known(voice).digest, **self.settings.__dict__, "device": self.context.device}
        facts |= {"torch": metadata.version("torch"), "onnxruntime": metadata.version("onnxruntime")}
        names = [fingerprint({"prompt": self.reference.captions[clip], "seed": self.seed(clip)}) for clip in clips]
        return ShardCache(self.store, "clips", facts, names=names)

    def played(self, voice: str, clips: Sequence[int]) -> list[Arrays]:
        """The clips of a voice; those that the store lacks are played now, side by side."""
        kept = self.clips(voice, clips)
        missing = kept.missing()
        if missing:
            musician = self.musician(voice)
            wanted = [clips[place] for place in missing]
            found = musician.play(self.prompts(wanted), [self.seed(clip) for clip in wanted], self.settings)
            for place, clip, one in zip(missing, wanted, found, strict=True):
                kept.write(place, _as_arrays(one, musician.rate))
                print(f"played {voice} {clip}", flush=True)
        return [kept.read(place) for place in range(len(clips))]

    def heard(self, voice: str, clips: Sequence[int]) -> Arrays:
        """Vectors, classes and health of clips of a voice."""
        kept = self._heard(fingerprint({"clips": self._names(voice, clips)}))
        if kept.missing():
            rate = self.known(voice).rate
            played = self.played(voice, clips)
            waves = [clip["wave"].astype(np.float32) / 32767 for clip in played]
            arrays = self._listened(lambda wanted: [resampled(wave, rate, wanted) for wave in waves])
            arrays["health"] = np.stack([clip["health"] for clip in played])
            arrays["kept"] = arrays["health"][:, 0] > 0
            kept.write(0, arrays)
        return kept.read(0)

    def heard_real(self, clips: Sequence[int], coded: bool = False) -> Arrays:
        """Vectors and classes of real clips, or of what is left of them behind the teacher's codec (`coded`).

        `kept` is false for those that could not be read.

        Raises:
            DataError: one cannot be read, and the recipe says to refuse.
        """
        facts: dict[str, Any] = {"real": [self._facts_of(clip) for clip in clips]}
        facts |= {"codec": self.known("teacher").digest} if coded else {}
        kept = self._heard(fingerprint({**facts, "rates": "each hearer's own"}))
        if kept.missing():
            told = Counter[str]()
            first = [self._real(clip, coded, self.embedder.rate, told) for clip in clips]

            def at(rate: int) -> list[Wave]:
                own = rate == self.embedder.rate
                waves = first if own else [self._real(clip, coded, rate, Counter()) for clip in clips]
                return [np.zeros(rate, np.float32) if wave is None else wave for wave in waves]

            arrays = self._listened(at)
            arrays["kept"] = np.array([wave is not None for wave in first])
            arrays["told"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
            kept.write(0, arrays)
        found = kept.read(0)
        if self.asked.damaged == "refuse" and not found["kept"].all():
            told = json.loads(found["told"].tobytes())
            raise DataError(next(what.removeprefix(_SKIPPED) for what in told if what.startswith(_SKIPPED)))
        return found

    def _real(self, clip: int, coded: bool, rate: int, told: Counter[str]) -> Wave | None:
        """A real clip at a rate, None if it cannot be read; `told` counts what was done."""
        try:
            heard = self.reference.wave(clip, self._codec().rate if coded else rate)
        except DataError as error:
            print(f"{_SKIPPED}{error}", flush=True)
            told.update([f"{_SKIPPED}{error}"])
            return None
        told.update(heard.changed)
        return resampled(self._codec().coded(heard.wave), self._codec().rate, rate) if coded else heard.wave

    def _codec(self) -> TorchGenerator:
        """The teacher, for its codec."""
        teacher = self.musician("teacher")
        assert isinstance(teacher, TorchGenerator), "a teacher is a model, never a bundle"
        return teacher

    def agreed(self, voice: str, clips: Sequence[int]) -> Arrays:
        """A voice against the teacher along the teacher's clips, and the teacher's surprise at the voice's own."""
        names = {"teacher": self._names("teacher", clips), "voice": self._names(voice, clips)}
        guidance = self.settings.guidance
        kept = ShardCache(self.store, "agreements", {**names, "guidance": guidance}, 1)
        if kept.missing():
            codes = np.stack([clip["codes"] for clip in self.played("teacher", clips)]).astype(np.int64)
            own = np.stack([clip["codes"] for clip in self.played(voice, clips)]).astype(np.int64)
            prompts = self.prompts(clips)
            found = self.musician(voice).forced(prompts, codes, guidance)
            teacher = self.musician("teacher")
            arrays = agreement(teacher.forced(prompts, codes, guidance), found, guidance).arrays()
            surprise = cross_entropies(teacher.forced(prompts, own, guidance)[: len(clips)], own)
            arrays |= {"surprise": surprise.numpy(), "variety": varieties(own)}
            kept.write(0, arrays)
        return kept.read(0)

    def cost(self, voice: str) -> dict[str, Any]:
        """What a voice's playing costs on this machine, measured once a run in a process of its own."""
        key = self.context.run.key(f"cost/{fingerprint({'voice': voice})[:16]}.json")
        try:
            found: dict[str, Any] = json.loads(self.store.get(key))
            return found
        except NotFoundError:
            pass
        asked = {
            "run": self.context.run_id,
            "store": self.context.store_url,
            "voice": voice,
            "device": self.context.device,
            "prompts": self.prompts(range(min(self.asked.cost_runs, self.asked.clips))),
        }
        everything = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "jobs.costing", json.dumps(asked)],
            cwd=Path(__file__).parents[1],
            env=everything,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise DataError(f"cost of {voice}: could not be measured ({' '.join(ended.stderr.split())[-300:]})")
        found = json.loads(ended.stdout.splitlines()[-1])
        self.store.put(key, json.dumps(found).encode())
        return found

    def _listened(self, at: Callable[[int], list[Wave]]) -> Arrays:
        """Vectors by the embedder and CLAP with their clips, and the tagger's classes; `at` gives clips at a rate."""
        arrays: Arrays = {}
        hearers = {"vectors": self.embedder} | ({} if self.clap is self.embedder else {"clap": self.clap})
        for name, hearer in hearers.items():
            found = hearer(at(hearer.rate))
            arrays[name] = np.concatenate(found).astype(np.float32)
            arrays[f"{name}_owners"] = np.repeat(np.arange(len(found)), [len(clip) for clip in found])
        if self.tagger is not None:
            classes = self.tagger(at(self.tagger.rate))
            arrays |= {f"classes/{question}": values for question, values in classes.items()}
        return arrays

    def _heard(self, name: str) -> ShardCache:
        facts: dict[str, Any] = {"embedding": self.embedder.facts, "clap": self.clap.facts, "layout": 1}
        facts["tagger"] = self.tagger.facts if self.tagger is not None else None
        return ShardCache(self.store, "heard", facts, names=[name])

    def _names(self, voice: str, clips: Sequence[int]) -> list[str]:
        kept = self.clips(voice, clips)
        return [kept.fingerprint, *kept.names]

    def _facts_of(self, clip: int) -> dict[str, Any]:
        try:
            return {**self.reference.facts(clip), "seconds": self.asked.seconds}
        except DataError as error:
            return {"damaged": str(error)}


_SKIPPED = "skipped: "
AGREEMENT_GROUP = 8
"""Clips that are held against the teacher at once: the logits of two passes are large."""
REAL, RECONSTRUCTED = "real", "real, coded"
"""The voices of the reference, as it is and behind the teacher's codec: nobody who plays through it can be nearer."""


def judged(recipe: Recipe) -> list[str]:
    """Whoever plays: the models that are asked for, each once."""
    return list(dict.fromkeys(recipe.evaluate.models))


def agreement_clips(asked: EvaluateConfig) -> int:
    """How many of the teacher's clips the models are held against."""
    return min(asked.agreement_clips, asked.clips)


def pieces(count: int, size: int) -> list[range]:
    """The numbers 0 to `count`, `size` at a time."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def label(voice: str) -> str:
    """A voice's short name, for people: its label, if it was given one."""
    own, voice = labelled(voice)
    if own:
        return own
    if voice in (*STAND_INS, REAL, RECONSTRUCTED):
        return voice
    name, _, digest = voice.partition("@sha256:")
    return f"{name}@{digest[:8]}" if digest else Path(voice).name


def labels(voices: Sequence[str]) -> dict[str, str]:
    """Every voice's short name, or its whole one where two would share the short one."""
    times = Counter(label(voice) for voice in voices)
    return {voice: label(voice) if times[label(voice)] == 1 else voice for voice in voices}


def _as_arrays(played: GeneratedClip, rate: int) -> Arrays:
    """A clip with 16 bits a sample, as it would be in a file, and the health it had before."""
    health = examine(played.wave, rate, played.codes)
    wave = np.round(np.clip(np.nan_to_num(played.wave), -1, 1) * 32767).astype(np.int16)
    return {"codes": played.codes.astype(np.int16), "wave": wave, "health": np.array(astuple(health), np.float64)}

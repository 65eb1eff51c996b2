"""The clips of an evaluation that no model generates, and their features: the real clips, and folders of audio files.

A *source* is `REAL`, `RECONSTRUCTED` (the real clips after the teacher's codec), or an entry of `evaluate.audio`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, fields
from functools import cached_property
from pathlib import PurePath

import numpy as np

from jobs.evaluate.feature_models import FeatureModels, read_computed
from jobs.evaluate.models import EvaluatedModels
from jobs.evaluate.open import has_clips, open_audio, open_reference
from jobs.worker.context import WorkerContext
from tinymusician.config_model import Document
from tinymusician.data.shards import Arrays, ShardCache
from tinymusician.errors import DataError
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.degenerate import ClipHealth, examine
from tinymusician.evaluate.reference import ReferenceSet
from tinymusician.evaluate.results import REAL, RECONSTRUCTED, RecordedAudio
from tinymusician.runtime.audio_reader import Wave, pyav_version, resampled


class _Details(Document):
    """What is stored with a group's features: `unreadable` has the index in the group, and the reason without a path.

    Features are stored by content: another folder may have the same files.
    """

    conversions: dict[str, int]
    unreadable: tuple[tuple[int, str], ...]


class Recordings:
    """The recorded clips of one evaluation on one worker."""

    def __init__(self, context: WorkerContext, models: EvaluatedModels, features: FeatureModels) -> None:
        self._config, self._corpus = context.recipe.evaluate, context.cache / "corpus"
        self._models, self._features = models, features
        self._folders: dict[str, ReferenceSet] = {}
        self._facts_of_clips: dict[tuple[str, int], dict[str, object]] = {}

    @cached_property
    def reference(self) -> ReferenceSet:
        """The real clips."""
        return open_reference(self._config, self._corpus)

    def clips(self, source: str) -> ReferenceSet:
        """The clips of a source."""
        if source in (REAL, RECONSTRUCTED):
            return self.reference
        if source not in self._folders:
            self._folders[source] = open_audio(source, self._config.seconds)
        return self._folders[source]

    def captions(self, source: str) -> list[str]:
        """The captions of a source's clips: a file's own, or that of the real clip of the same name; empty for none."""
        clips, by_name = self.clips(source), dict[str, str]()
        if has_clips(self._config):
            by_name = {_stem(name): caption for name, caption in self.reference.captions_by_name.items()}
        pairs = zip(clips.captions, clips.names, strict=True)
        return [caption or by_name.get(_stem(name), "") for caption, name in pairs]

    def embed(self, source: str, clips: Sequence[int]) -> None:
        """Compute the features of a source's clips that the cache lacks.

        Raises:
            DataError: a clip cannot be read, and `evaluate.on_unreadable` is `refuse`.
        """
        cache = self._cache(source, clips)
        if cache.missing():
            conversions, unreadable = Counter[str](), dict[int, str]()
            rate = self._features.embedder.rate
            first = [self._wave(source, clip, rate, conversions, unreadable) for clip in clips]

            def at(needed: int) -> list[Wave]:
                again = needed != rate
                waves = [self._wave(source, clip, needed, Counter(), {}) for clip in clips] if again else first
                return [np.zeros(needed, np.float32) if wave is None else wave for wave in waves]

            arrays = self._features.compute(at)
            for clip in _clips_not_finite(arrays):
                unreadable.setdefault(clips[clip], "its embedding is not finite: are its samples in [-1, 1]?")
            arrays["valid"] = np.array([clip not in unreadable for clip in clips])
            if source not in (REAL, RECONSTRUCTED):
                arrays["health"] = self._health(
                    source, [clip for clip, wave in zip(clips, first, strict=True) if wave is not None]
                )
            reasons = tuple((index, unreadable[clip]) for index, clip in enumerate(clips) if clip in unreadable)
            details = _Details(conversions=dict(conversions), unreadable=reasons)
            cache.write(0, arrays, details.model_dump(mode="json"))
        if self._config.on_unreadable == "refuse" and (unread := self.audio(source, clips).unreadable):
            raise DataError(unread[0])

    def features(self, source: str, clips: Sequence[int]) -> Arrays:
        """Embeddings and class probabilities of a source's clips; `valid` marks those that could be read.

        Those of a folder of audio have the `health` of the clips that could be read, too.

        Raises:
            NotFoundError: they were not computed.
        """
        return read_computed(self._cache(source, clips), f"features of the clips `{source}`")

    def audio(self, source: str, clips: Sequence[int]) -> RecordedAudio:
        """How these clips were read."""
        details = _Details.model_validate(self._cache(source, clips).details(0))
        locate = self.clips(source).location
        unreadable = tuple(f"{locate(clips[index])}: {reason}" for index, reason in details.unreadable)
        return RecordedAudio(conversions=details.conversions, unreadable=unreadable)

    def _cache(self, source: str, clips: Sequence[int]) -> ShardCache:
        facts = [self._facts(source, clip) for clip in clips]
        if source in (REAL, RECONSTRUCTED):
            codec = {"codec": self._models.facts("teacher").digest} if source == RECONSTRUCTED else {}
            return self._features.cache({"real": facts, "decoder": pyav_version(), **codec, "layout": 2})
        return self._features.cache({"audio": facts, "decoder": pyav_version(), "layout": 2})

    def _facts(self, source: str, clip: int) -> dict[str, object]:
        """What a clip depends on; its file is hashed once."""
        key = (REAL if source == RECONSTRUCTED else source, clip)
        if key not in self._facts_of_clips:
            try:
                facts = {**self.clips(source).facts(clip), "seconds": self._config.seconds}
            except DataError as error:
                facts = {"damaged": str(error)}
            self._facts_of_clips[key] = facts
        return self._facts_of_clips[key]

    def _wave(
        self, source: str, clip: int, rate: int, conversions: Counter[str], unreadable: dict[int, str]
    ) -> Wave | None:
        """A clip at a rate, None if it cannot be read; notes its conversions, or why it cannot be read."""
        codec = self._models.codec() if source == RECONSTRUCTED else None
        try:
            loaded = self.clips(source).wave(clip, codec.rate if codec else rate)
        except DataError as error:
            print(f"skipped: {error}", flush=True)
            unreadable[clip] = str(error).removeprefix(f"{self.clips(source).location(clip)}: ")
            return None
        conversions.update(loaded.changed)
        return resampled(codec.reconstruct(loaded.wave), codec.rate, rate) if codec else loaded.wave

    def _health(self, source: str, clips: Sequence[int]) -> Floats:
        """The health of clips at the rate of their files, [clips, fields of `ClipHealth`]."""
        rows = []
        for clip in clips:
            recorded = self.clips(source).wave(clip, None)
            rows.append(astuple(examine(recorded.wave, recorded.rate)))
        return np.array(rows, np.float64).reshape(len(clips), len(fields(ClipHealth)))


def _clips_not_finite(arrays: Arrays) -> list[int]:
    """The clips of a group of which an embedding is not finite."""
    bad = set[int]()
    for name in {"vectors", "clap"} & set(arrays):
        bad |= set(arrays[f"{name}_owners"][~np.isfinite(arrays[name]).all(axis=1)].tolist())
    return sorted(bad)


def _stem(name: str) -> str:
    return PurePath(name).with_suffix("").as_posix()

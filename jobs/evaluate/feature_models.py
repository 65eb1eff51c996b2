"""The models that compute a clip's features, loaded when they are needed, and the cache of features in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from jobs.evaluate.laion_clap_actor import LaionClapActor
from jobs.evaluate.open import open_embedder, open_judge, open_tagger
from jobs.worker.context import WorkerContext
from tinymusician.data.shards import Arrays, ShardCache, fingerprint
from tinymusician.errors import NotFoundError
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.embedding import AudioClassifier, Embedder, TextEmbedder
from tinymusician.evaluate.judge import QuestionJudge
from tinymusician.runtime.audio_reader import Wave


class FeatureModels:
    """Embedding models and classifier of one evaluation on one worker."""

    def __init__(self, context: WorkerContext) -> None:
        self._config, self._store, self._device = context.recipe.evaluate, context.run.store, context.device

    @cached_property
    def embedder(self) -> Embedder:
        """The embedding model of FAD and KAD."""
        return open_embedder(self._config.embedding, self._device)

    @cached_property
    def clap(self) -> TextEmbedder:
        """The embedding model of the CLAP score."""
        shared = self._config.clap in ("embedding", getattr(self._config.embedding, "model", ""))
        if shared and isinstance(self.embedder, ClapEmbedder | LaionClapActor):
            return self.embedder
        return ClapEmbedder(self._config.clap, self._device)

    @cached_property
    def tagger(self) -> AudioClassifier | None:
        """The classifier, if the recipe names one."""
        return open_tagger(self._config.tagger, self._device) if self._config.tagger else None

    @cached_property
    def judge(self) -> QuestionJudge | None:
        """The bundle that is asked about the clips, if the recipe names one."""
        return open_judge(self._config.judge) if self._config.judge else None

    def embed_prompts(self, prompts: Sequence[str]) -> Floats:
        """A vector of CLAP per prompt, [N, D]; equal for equal prompts, NaN for an empty one."""
        texts = list(dict.fromkeys(prompt for prompt in prompts if prompt))
        vectors = self.clap.text(texts) if texts else np.zeros((0, 1))
        by_text = dict(zip(texts, vectors, strict=True))
        nothing = np.full(vectors.shape[1], np.nan)
        return np.array([by_text.get(prompt, nothing) for prompt in prompts]).reshape(len(prompts), len(nothing))

    def compute(self, at: Callable[[int], Sequence[Wave]]) -> Arrays:
        """Embeddings (`vectors`, `clap`) with the owners of their windows, classes, and `answers` of the judge.

        `at` gives the clips at a rate.
        """
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
        if self.judge is not None:
            answers = self.judge(at(self.judge.rate))
            arrays |= {f"answers/{attribute}": values for attribute, values in answers.items()}
        return arrays

    def cache(self, subject: Mapping[str, object]) -> ShardCache:
        """The cache of the features of some clips; `subject` is what these clips depend on."""
        tagger = self.tagger.facts if self.tagger is not None else None
        facts = {"embedding": self.embedder.facts, "clap": self.clap.facts, "tagger": tagger, "layout": 3}
        if self.judge is not None:
            facts["judge"] = self.judge.facts
        return ShardCache(self._store, "features", facts, names=[fingerprint(subject)])


AGAIN = "run the evaluation again with `--from generate`"


def read_computed(cache: ShardCache, what: str) -> Arrays:
    """The arrays of a cache's one shard.

    Raises:
        NotFoundError: they were not computed.
    """
    if cache.missing():
        raise NotFoundError(f"{what}: not in {cache.store.url}; {AGAIN}")
    return cache.read(0)

"""A bundle as an `Answerer` of the benchmark: the same graphs and tokens that devices use, one question at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinymusician.runtime.answers import Floats, OptionProbabilities, option_probabilities, scored_tokens
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.language_model import LMState
from tinymusician.runtime.prompts import MAX_NEW_TOKENS
from tinymusician.runtime.question_answerer import QuestionAnswerer
from tinymusician.understand.questions import Question

_CLIP_BATCH = 16


class BundleAnswerer:
    """A bundle; its `features` are the embeddings that the language model reads."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self._source = QuestionAnswerer(folder, threads)
        self._read: tuple[bytes, LMState] | None = None

    @property
    def attributes(self) -> Sequence[AttributeQuestion]:
        """The bundle's questions about attributes."""
        return self._source.manifest.questions

    def embed(self, waves_BN: Floats) -> Floats:
        """The embeddings of clips of equal length, [B, T, W]."""
        parts = np.array_split(waves_BN, -(-len(waves_BN) // _CLIP_BATCH))
        return np.concatenate([self._source.embed(part) for part in parts])

    def probabilities(self, features: Floats | None, questions: Sequence[Question]) -> list[OptionProbabilities]:
        assert features is not None, "a bundle has audio"
        source, results = self._source, []
        for clip, question in zip(features, questions, strict=True):
            state = source.lm.prefill_text(self._state(clip), source.tokenizer.encode(question.prompt).ids)
            tokens = scored_tokens(source.tokenizer, question.options, source.shape.end)
            results.append(option_probabilities(source.lm.log_likelihoods(state, tokens)[0]))
        return results

    def generate(self, features: Floats | None, prompts: Sequence[str]) -> list[str]:
        assert features is not None, "a bundle has audio"
        source, texts = self._source, []
        for clip, prompt in zip(features, prompts, strict=True):
            state = source.lm.prefill_text(self._state(clip), source.tokenizer.encode(prompt).ids)
            tokens = source.lm.generate(state, MAX_NEW_TOKENS)
            texts.append(source.tokenizer.decode(tokens, skip_special_tokens=False).strip())
        return texts

    def _state(self, clip_TW: Floats) -> LMState:
        """The state after a clip; that of the last clip is remembered."""
        content = clip_TW.tobytes()
        if self._read is None or self._read[0] != content:
            self._read = content, self._source.lm.prefill_audio(clip_TW[None])
        return self._read[1]

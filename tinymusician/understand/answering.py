"""Answers of a model to questions: the probabilities of options, and free text.

A prompt is read once, and all its options continue from the cache. Prompts of one length are read together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tinymusician.models.audio_lm import AudioLM, PromptState
from tinymusician.runtime.answers import (
    Floats,
    OptionProbabilities,
    TextTokenizer,
    option_probabilities,
    scored_tokens,
    summed,
)
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion
from tinymusician.runtime.finer_attributes import finer_question
from tinymusician.runtime.prompts import MAX_NEW_TOKENS
from tinymusician.understand.questions import Question

_POSITIONS_AT_ONCE = 16_384
"""Positions in the cache of a batch, about: 46 kB each in SmolLM2-135M."""


class Answerer(Protocol):
    """A model that answers questions about clips; `features` are one clip's audio vectors for each question."""

    def probabilities(self, features: Floats | None, questions: Sequence[Question]) -> list[OptionProbabilities]:
        """The probabilities of the questions' options."""

    def generate(self, features: Floats | None, prompts: Sequence[str]) -> list[str]:
        """The most probable answers, token by token."""


class FinerAnswerer:
    """An answerer that is asked for the finer attribute from which options follow, as bundles are."""

    def __init__(self, answerer: Answerer, questions: Sequence[AttributeQuestion]) -> None:
        self._answerer, self._questions = answerer, questions

    def probabilities(self, features: Floats | None, questions: Sequence[Question]) -> list[OptionProbabilities]:
        finer = [finer_question(question.options, self._questions) for question in questions]
        replaced = [
            each
            if fine is None
            else each.model_copy(update={"text": fine.question.text, "options": fine.question.options})
            for each, fine in zip(questions, finer, strict=True)
        ]
        results = self._answerer.probabilities(features, replaced)
        return [
            each if fine is None else each._replace(options=summed(each.options, fine.members))
            for each, fine in zip(results, finer, strict=True)
        ]

    def generate(self, features: Floats | None, prompts: Sequence[str]) -> list[str]:
        return self._answerer.generate(features, prompts)


class _Prompt(NamedTuple):
    """The tokens of a question's prompt, and those of every text that may follow."""

    tokens: list[int]
    texts: list[list[int]]


class TorchAnswerer:
    """An `AudioLM` in PyTorch."""

    def __init__(self, model: AudioLM, tokenizer: TextTokenizer, device: str = "cpu") -> None:
        self._model, self._tokenizer, self._device = model.to(device).eval(), tokenizer, device
        self._end = model.shape.lm.end
        self._tokens_of: dict[tuple[str, ...], list[list[int]]] = {}

    @torch.no_grad()
    def features(self, waves_BN: Floats) -> Floats:
        """The audio encoder's vectors, [B, T, F]."""
        return np.asarray(self._model.audio_encoder(torch.from_numpy(waves_BN).to(self._device)).cpu().numpy())

    def probabilities(self, features: Floats | None, questions: Sequence[Question]) -> list[OptionProbabilities]:
        prompts = [
            _Prompt(tokens, self._scored(question.options))
            for tokens, question in zip(self._encode([q.prompt for q in questions]), questions, strict=True)
        ]
        results: dict[int, OptionProbabilities] = {}
        audio = 0 if features is None else features.shape[1]
        for rows in _batches([(len(prompt.tokens), len(prompt.texts)) for prompt in prompts], audio):
            logs = self._log_likelihoods(select_rows(features, rows), [prompts[row] for row in rows])
            results |= {row: option_probabilities(each) for row, each in zip(rows, logs, strict=True)}
        return [results[row] for row in range(len(questions))]

    def _scored(self, options: tuple[str, ...]) -> list[list[int]]:
        """The tokens of a question's options; many questions have the same ones."""
        if options not in self._tokens_of:
            self._tokens_of[options] = scored_tokens(self._tokenizer, options, self._end)
        return self._tokens_of[options]

    @torch.no_grad()
    def _log_likelihoods(self, features: Floats | None, prompts: Sequence[_Prompt]) -> Floats:
        """The log-likelihoods of the texts after their prompts, which have one length and number of texts, [B, N]."""
        state, texts = self._read(features, [prompt.tokens for prompt in prompts]), len(prompts[0].texts)
        tokens = [torch.tensor(text) for prompt in prompts for text in prompt.texts]
        ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(self._device)
        lengths = torch.tensor([len(text) for text in tokens], device=self._device)
        state.cache.batch_repeat_interleave(texts)
        logits = [state.logits.repeat_interleave(texts, 0)[:, None]]
        if ids.shape[1] > 1:
            logits.append(self._model.read_on(state.cache, ids[:, :-1]))
        logs = -F.cross_entropy(torch.cat(logits, 1).float().transpose(1, 2), ids, reduction="none")
        is_text = torch.arange(ids.shape[1], device=self._device) < lengths[:, None]
        sums = (logs * is_text).sum(1).reshape(len(prompts), texts)
        return np.asarray(sums.cpu().numpy())

    def generate(self, features: Floats | None, prompts: Sequence[str]) -> list[str]:
        tokens = self._encode(prompts)
        written: dict[int, str] = {}
        for rows in _batches([(len(each), 1) for each in tokens], 0 if features is None else features.shape[1]):
            written |= zip(rows, self._write(select_rows(features, rows), [tokens[row] for row in rows]), strict=True)
        return [written[row] for row in range(len(prompts))]

    @torch.no_grad()
    def _write(self, features: Floats | None, prompts: Sequence[list[int]]) -> list[str]:
        """The answers to prompts of one length, until all have ended."""
        state = self._read(features, prompts)
        tokens = state.logits.argmax(-1)[:, None]
        is_ended = tokens[:, -1] == self._end
        while tokens.shape[1] < MAX_NEW_TOKENS and not is_ended.all():
            token = self._model.read_on(state.cache, tokens[:, -1:])[:, -1].argmax(-1)
            tokens = torch.cat([tokens, token[:, None]], 1)
            is_ended |= token == self._end
        return [self._text(row) for row in tokens.tolist()]

    def _text(self, tokens: list[int]) -> str:
        """The text before the end token."""
        length = tokens.index(self._end) if self._end in tokens else len(tokens)
        return self._tokenizer.decode(tokens[:length], skip_special_tokens=False).strip()

    def _read(self, features: Floats | None, prompts: Sequence[list[int]]) -> PromptState:
        audio = None if features is None else self._tensor(np.asarray(features, np.float32))
        return self._model.read(audio, self._tensor(np.array(prompts, np.int64)))

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self._tokenizer.encode_batch(list(texts))]


def _batches(sizes: Sequence[tuple[int, int]], audio: int) -> Iterator[list[int]]:
    """Numbers of prompts of equal (length, texts), as many as are read at once, with `audio` vectors before each."""
    alike: dict[tuple[int, int], list[int]] = {}
    for row, size in enumerate(sizes):
        alike.setdefault(size, []).append(row)
    for (length, texts), rows in alike.items():
        count = max(1, _POSITIONS_AT_ONCE // (texts * (audio + 1 + length + MAX_NEW_TOKENS)))
        yield from (rows[start : start + count] for start in range(0, len(rows), count))


def select_rows(features: Floats | None, rows: Sequence[int]) -> Floats | None:
    """Some rows of features; None if there are no features."""
    return None if features is None else features[list(rows)]

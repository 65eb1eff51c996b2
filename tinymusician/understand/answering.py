"""Answers of a model to questions: the probabilities of options, and free text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinymusician.models.audio_lm import AudioLM
from tinymusician.runtime.answers import Floats, OptionProbabilities, TextTokenizer, option_probabilities, scored_tokens
from tinymusician.understand.answer_task import padded
from tinymusician.understand.questions import Question
from tinymusician.understand.tokenizer import END_ID, PAD_ID

_BATCH = 64
_LONGEST_ANSWER = 24


class Answerer(Protocol):
    """A model that answers questions about clips; `features` are one clip's audio vectors for each question."""

    def probabilities(self, features: Floats | None, questions: Sequence[Question]) -> list[OptionProbabilities]:
        """The probabilities of the questions' options."""

    def generate(self, features: Floats | None, prompts: Sequence[str]) -> list[str]:
        """The most probable answers, token by token."""


class TorchAnswerer:
    """An `AudioLM` in PyTorch."""

    def __init__(self, model: AudioLM, tokenizer: TextTokenizer, device: str = "cpu") -> None:
        self._model, self._tokenizer, self._device = model.to(device).eval(), tokenizer, device
        self._tokens_of: dict[tuple[str, ...], list[list[int]]] = {}

    @torch.no_grad()
    def features(self, waves_BN: Floats) -> Floats:
        """The audio encoder's vectors, [B, T, F]."""
        return np.asarray(self._model.audio_encoder(torch.from_numpy(waves_BN).to(self._device)).cpu().numpy())

    def probabilities(self, features: Floats | None, questions: Sequence[Question]) -> list[OptionProbabilities]:
        rows = [index for index, question in enumerate(questions) for _ in range(len(question.options) + 1)]
        prompts = self._encode([question.prompt for question in questions])
        texts = [text for question in questions for text in self._scored(question.options)]
        logs = self._log_likelihoods(features, rows, [prompts[row] for row in rows], texts)
        ends = np.cumsum([len(question.options) + 1 for question in questions])[:-1]
        return [option_probabilities(each) for each in np.split(logs, ends)]

    def _scored(self, options: tuple[str, ...]) -> list[list[int]]:
        """The tokens of a question's options; many questions have the same ones."""
        if options not in self._tokens_of:
            self._tokens_of[options] = scored_tokens(self._tokenizer, options, END_ID)
        return self._tokens_of[options]

    @torch.no_grad()
    def _log_likelihoods(
        self, features: Floats | None, rows: Sequence[int], prompts: list[list[int]], texts: list[list[int]]
    ) -> Floats:
        """The log-likelihood of every text's tokens, after its prompt and the features of its row."""
        logs: list[Floats] = []
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            answers = [np.array(text, np.int64) for text in texts[part]]
            ids, is_answer = padded([np.array(prompt, np.int64) for prompt in prompts[part]], answers)
            audio = None if features is None else self._tensor(np.asarray(features[list(rows[part])], np.float32))
            ids, is_answer = ids.to(self._device), is_answer.to(self._device)
            log = self._model(audio, ids, is_answer).float().log_softmax(-1)
            picked = log.gather(1, ids[is_answer][:, None])[:, 0]
            sums = torch.zeros(len(answers), device=picked.device).index_add_(0, is_answer.nonzero()[:, 0], picked)
            logs.append(np.asarray(sums.cpu().numpy()))
        return np.concatenate(logs)

    def generate(self, features: Floats | None, prompts: Sequence[str]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(prompts), _BATCH):
            batch = self._encode(prompts[start : start + _BATCH])
            texts += self._generate_batch(_rows(features, start, len(batch)), batch)
        return texts

    def _generate_batch(self, features: Floats | None, prompts: list[list[int]]) -> list[str]:
        answers: list[list[int]] = [[] for _ in prompts]
        open_rows = list(range(len(prompts)))
        for _ in range(_LONGEST_ANSWER):
            rows = None if features is None else features[open_rows]
            logits = self._next_logits(rows, [prompts[row] + answers[row] for row in open_rows])
            for row, token in zip(open_rows, logits.argmax(-1).tolist(), strict=True):
                answers[row].append(token)
            open_rows = [row for row in open_rows if answers[row][-1] != END_ID]
            if not open_rows:
                break
        texts = [[token for token in answer if token != END_ID] for answer in answers]
        return [self._tokenizer.decode(tokens, skip_special_tokens=False).strip() for tokens in texts]

    @torch.no_grad()
    def _next_logits(self, features: Floats | None, sequences: Sequence[Sequence[int]]) -> Floats:
        """The logits of the token after each sequence, [B, vocabulary]."""
        ids = np.full((len(sequences), max(map(len, sequences)) + 1), PAD_ID, np.int64)
        is_next = np.zeros(ids.shape, bool)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            is_next[row, len(sequence)] = True
        audio = None if features is None else self._tensor(np.asarray(features, np.float32))
        logits = self._model(audio, self._tensor(ids), self._tensor(is_next))
        return np.asarray(logits.float().cpu().numpy())

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self._tokenizer.encode_batch(list(texts))]


def _rows(features: Floats | None, start: int, count: int) -> Floats | None:
    return None if features is None else features[start : start + count]

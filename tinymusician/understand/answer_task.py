"""Trains projector and language model to answer questions about clips, whose audio features were computed before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician.models.audio_lm import AudioLM
from tinymusician.models.divergences import forward_kl
from tinymusician.runtime.answers import TextTokenizer
from tinymusician.runtime.prompts import CANNOT_TELL
from tinymusician.training.task import Model, to_device
from tinymusician.understand.lora import adapters
from tinymusician.understand.questions import Question
from tinymusician.understand.tokenizer import PAD_ID, TokenizedQuestions, tokenize

Features = npt.NDArray[np.float16]
NO_FEATURES: Features = np.zeros((0, 0, 0), np.float16)
_BATCHES_PER_BUCKET = 16


class AnswerBatch(NamedTuple):
    """`features` [B, T, F] or None, `ids` [B, L] of prompt and answer, and where the `answers` are, [B, L]."""

    features: Tensor | None
    ids: Tensor
    answers: Tensor


class QuestionSet(NamedTuple):
    """Questions with their tokens, and the audio features of the clips that they number, [clips, T, F]."""

    questions: Sequence[Question]
    tokens: TokenizedQuestions
    features: Features


def question_set(tokenizer: TextTokenizer, end: int, questions: Sequence[Question], features: Features) -> QuestionSet:
    """Tokenize questions; the token `end` ends answers."""
    tokens = tokenize(tokenizer, end, [q.prompt for q in questions], [q.target for q in questions])
    return QuestionSet(questions, tokens, features)


def stated_question_set(tokenizer: TextTokenizer, end: int, questions: Sequence[Question]) -> QuestionSet:
    """Tokenize questions with what they ask for in words, for a model without audio; captions are left out."""
    stated = [question for question in questions if question.value]
    tokens = tokenize(tokenizer, end, [q.stated_prompt for q in stated], [q.target for q in stated])
    return QuestionSet(stated, tokens, NO_FEATURES)


@dataclass(frozen=True)
class AnswerTeacher:
    """A larger model with the same encoder and tokenizer; the true answers have weight `hard` beside its own."""

    model: AudioLM
    hard: float


class AnswerModule(nn.Module):
    """The trained part of an AudioLM: projector, and LM or its adapters. The encoder's outputs are the features."""

    def __init__(self, model: AudioLM) -> None:
        super().__init__()
        self.projector, self.lm = model.projector, adapters(model) or model.lm
        self._model = [model]  # in a list, so that the rest is no submodule

    def forward(self, batch: AnswerBatch) -> Tensor:
        logits: Tensor = self._model[0](*batch)
        return logits


class AnswerTask:
    """Cross-entropy of the answers' tokens. A share of the clips is replaced by silence or noise: "cannot tell".

    Batches are of similar lengths: each bucket of 16 batches is sorted by length.
    """

    def __init__(
        self,
        model: AudioLM,
        tokenizer: TextTokenizer,
        train: QuestionSet,
        held_out: QuestionSet,
        no_music: Features,
        batch_size: int,
        seed: int,
        is_text_only: bool = False,
        no_music_share: float = 0.03,
        teacher: AnswerTeacher | None = None,
    ) -> None:
        """`no_music` are features of clips without music, [clips, T, F]; a text-only model gets no features at all.

        With a `teacher`, the loss is the KL from its distribution of every answer token, plus the weighted
        cross-entropy.
        """
        self.teacher = teacher
        if teacher is not None:
            teacher.model.requires_grad_(False).eval()
        self.module, self.model = AnswerModule(model), model
        self.train, self.held_out, self.no_music = train, held_out, no_music
        self.batch_size, self.seed, self.is_text_only = batch_size, seed, is_text_only
        self.no_music_share = 0.0 if is_text_only else no_music_share
        self._epoch: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros((0, 0), np.int64))
        self._lengths = np.array([len(p) + len(a) for p, a in zip(*train.tokens, strict=True)])
        (self._cannot_tell,) = tokenize(tokenizer, model.shape.lm.end, [""], [CANNOT_TELL]).answers

    def rows(self, step: int, part: int, parts: int) -> npt.NDArray[np.int64]:
        """The next questions of a random order of all, epoch by epoch; the rest of an epoch is left out."""
        per_epoch = max(1, len(self.train.questions) // self.batch_size)
        epoch, number = divmod(step * parts + part, per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._batches(epoch, per_epoch)
        rows: npt.NDArray[np.int64] = self._epoch[1][number]
        return rows

    def _batches(self, epoch: int, count: int) -> npt.NDArray[np.int64]:
        """The batches of an epoch, [count, batch]: buckets of a random order, sorted by length, in random order."""
        rng = np.random.default_rng((self.seed, epoch))
        order = np.resize(rng.permutation(len(self.train.questions)), count * self.batch_size)
        size = self.batch_size * _BATCHES_PER_BUCKET
        buckets = [order[start : start + size] for start in range(0, len(order), size)]
        rows = np.concatenate([bucket[self._lengths[bucket].argsort(kind="stable")] for bucket in buckets])
        return np.asarray(rng.permutation(rows.reshape(count, self.batch_size)), np.int64)

    def batch(self, step: int, part: int, parts: int) -> AnswerBatch:
        """The questions of a microbatch."""
        rows = self.rows(step, part, parts)
        rng = np.random.default_rng((self.seed, step, part, parts))
        is_no_music = rng.random(len(rows)) < self.no_music_share
        return self._read(self.train, rows, is_no_music, rng)

    def loss(
        self, model: Model, batch: AnswerBatch, step: int, diagnostics: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the tokens of the answers, in nats."""
        logits = model(batch).float()
        hard = F.cross_entropy(logits, batch.ids[batch.answers])
        if self.teacher is None:
            return hard, {}
        with torch.no_grad():
            log_p = self.teacher.model(*batch).float().log_softmax(-1)
        kl = forward_kl(log_p, logits.log_softmax(-1)).mean()
        return kl + self.teacher.hard * hard, {"kl": kl.detach(), "cross_entropy": hard.detach()}

    def validate(self, model: Model) -> dict[str, float]:
        """The loss of held-out answers, and the share of answers whose every token is the most probable one."""
        device = next(self.module.parameters()).device
        losses, right = [], []
        count = len(self.held_out.questions)
        rng = np.random.default_rng(0)
        for rows in np.array_split(np.arange(count), -(-count // self.batch_size)):
            batch = to_device(self._read(self.held_out, rows, np.zeros(len(rows), bool), rng), device)
            logits, targets = model(batch).float(), batch.ids[batch.answers]
            losses.append(F.cross_entropy(logits, targets, reduction="none"))
            wrong = torch.zeros(len(rows), device=device)
            wrong.index_add_(0, batch.answers.nonzero()[:, 0], (logits.argmax(-1) != targets).float())
            right.append(wrong == 0)
        return {"loss": torch.cat(losses).mean().item(), "exact_match": torch.cat(right).float().mean().item()}

    def _read(
        self,
        questions: QuestionSet,
        rows: npt.NDArray[np.int64],
        is_no_music: npt.NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> AnswerBatch:
        answers = [
            self._cannot_tell if lost else questions.tokens.answers[row]
            for row, lost in zip(rows, is_no_music, strict=True)
        ]
        ids, is_answer = padded([questions.tokens.prompts[row] for row in rows], answers)
        if self.is_text_only:
            return AnswerBatch(None, ids, is_answer)
        clips = [questions.questions[row].clip for row in rows]
        features = np.asarray(questions.features[clips], np.float32)
        replaced_rows = np.flatnonzero(is_no_music)
        features[replaced_rows] = self.no_music[rng.integers(0, len(self.no_music), len(replaced_rows))]
        return AnswerBatch(torch.from_numpy(features), ids, is_answer)


def padded(prompts: Sequence[npt.NDArray[np.int64]], answers: Sequence[npt.NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Prompt and answer of every row, padded on the right, [B, L]; and a mask of the answers."""
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = np.full((len(prompts), length), PAD_ID, np.int64)
    is_answer = np.zeros((len(prompts), length), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(answer)] = answer
        is_answer[row, len(prompt) : len(prompt) + len(answer)] = True
    return torch.from_numpy(ids), torch.from_numpy(is_answer)

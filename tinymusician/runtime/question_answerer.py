"""Answers questions about audio with a bundle: ONNX Runtime and NumPy only.

Audio longer than the training clips is judged in windows, whose log-probabilities are averaged. A window counts as much
as the model can tell something about it, so silence at the beginning changes little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinymusician.errors import BundleError, RequestError
from tinymusician.runtime.answers import candidates, option_probabilities, softmax
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion, open_audio_lm
from tinymusician.runtime.cpus import engine_threads
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.language_model import LanguageModel, LMState
from tinymusician.runtime.prompts import CANNOT_TELL, MAX_LETTERS, prompt_of
from tinymusician.runtime.session import Session

Samples = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]
MIN_SECONDS, MAX_SECONDS = 0.5, 600.0
"""The length of audio that a question may be about."""
MAX_QUESTION_CHARACTERS, MAX_OPTIONS = 500, 50
_LONGEST_ANSWER = 32
_WINDOWS_AT_ONCE = 8
_SMALLEST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Option:
    """A possible answer and its probability among all options."""

    text: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """The answer to one question. Without options it is free text, and `probability` is that of the whole text.

    `cannot_tell` is the probability that nothing can be told from the audio; above one half, `answer` says so.
    """

    question: str
    answer: str
    probability: float
    cannot_tell: float
    options: tuple[Option, ...]
    attribute: str | None = None


@dataclass(frozen=True)
class Heading:
    """What the answers are about: the length of the audio, and the number of windows it was judged in."""

    audio_seconds: float
    windows: int


class AudioState:
    """Audio that has been read: one row of the language model's state per window."""

    def __init__(self, heading: Heading, states: list[LMState]) -> None:
        self.heading, self.states = heading, states


class QuestionAnswerer:
    """Answers questions with one bundle."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Check and load the bundle; with 0 `threads`, there are as many as this process may use.

        Raises:
            BundleError: it is incomplete, damaged, of another kind, or cannot be loaded here.
        """
        from tokenizers import Tokenizer

        self.manifest = open_audio_lm(folder)
        self.shape = self.manifest.architecture
        self._encoder = _open(folder / self.manifest.file("audio_encoder"), threads)
        self.lm = LanguageModel(_open(folder / self.manifest.file("lm"), threads), self.shape)
        self.tokenizer = Tokenizer.from_file(str(folder / self.manifest.file("tokenizer")))

    def read(self, wave: Samples) -> AudioState:
        """Read mono audio at the bundle's rate, once for all questions.

        Raises:
            RequestError: it is too short, too long, or has samples that are not finite.
        """
        rate = self.shape.sampling_rate
        seconds = len(wave) / rate
        if not MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise RequestError(f"audio: lasts {seconds:g} s; {MIN_SECONDS:g} to {MAX_SECONDS:g} s are allowed", "audio")
        if not np.isfinite(wave).all():
            raise RequestError("audio: has samples that are not finite numbers", "audio")
        windows = split_windows(len(wave), round(self.shape.window_seconds * rate))
        states = [
            self.lm.read_audio(self.embed(np.stack([wave[start:end] for start, end in batch])))
            for batch in _batches(windows)
        ]
        return AudioState(Heading(seconds, len(windows)), states)

    def embed(self, waves_BN: Samples) -> Floats:
        """The embeddings of clips of equal length, [B, T, W]."""
        try:
            (embeddings,) = self._encoder.run(["embeddings"], {"audio": waves_BN})
        except Exception as error:  # ONNX Runtime's exceptions
            raise as_engine_error("the audio encoder", error) from error
        return embeddings

    def without_audio(self) -> AudioState:
        """The state of a model that gets no audio at all, for a baseline by text alone."""
        nothing = np.zeros((1, 0, self.shape.width), np.float32)
        return AudioState(Heading(0.0, 0), [self.lm.read_audio(nothing)])

    def ask(self, audio: AudioState, question: str, options: Sequence[str] = ()) -> Answer:
        """Answer a question; with options, the answer is one of them.

        Raises:
            RequestError: the question is empty or too long, or the options are not several different texts.
        """
        check_question(question, options)
        given = tuple(options) or self._listed_options(question)
        if not given:
            return self.write(audio, question)
        if len(given) > MAX_LETTERS:
            return self._choose_by_likelihood(audio, question, given)
        return self._choose_by_letter(audio, question, given)

    def ask_all(self, audio: AudioState) -> list[Answer]:
        """Answer the bundle's questions about all attributes."""
        return [self._ask_attribute(audio, question) for question in self.manifest.questions]

    def _ask_attribute(self, audio: AudioState, question: AttributeQuestion) -> Answer:
        answer = self.ask(audio, question.text, question.options)
        return Answer(**{**vars(answer), "attribute": question.attribute})

    def _listed_options(self, question: str) -> tuple[str, ...]:
        """The possible answers to a question that the bundle lists."""
        plain = question.strip().casefold().rstrip("?")
        return next((q.options for q in self.manifest.questions if q.text.casefold().rstrip("?") == plain), ())

    def _choose_by_letter(self, audio: AudioState, question: str, options: tuple[str, ...]) -> Answer:
        """By the probability of the options' letters, averaged over all rotations of their order."""
        logs, unable = [], []
        for by in range(len(options)):
            answers = candidates(self.tokenizer, options)
            prompt = self.tokenizer.encode(prompt_of(question, options[by:] + options[:by])).ids
            for first, following in self._after(audio, prompt, answers.prefix):
                each = option_probabilities(first, following, answers)
                logs.append(np.roll(np.log(np.maximum(each.options, 1e-30)), by))
                unable.append(each.cannot_tell)
        return _combined(question, options, np.array(logs), np.array(unable))

    def _choose_by_likelihood(self, audio: AudioState, question: str, options: tuple[str, ...]) -> Answer:
        """By the likelihood of the options' texts, for more options than there are letters."""
        texts = [self.tokenizer.encode(f" {text}").ids for text in (*options, CANNOT_TELL)]
        prompt = self.tokenizer.encode(prompt_of(question)).ids
        states = [self.lm.read_text(state, prompt) for state in audio.states]
        logs = np.concatenate([self.lm.log_likelihoods(state, texts) for state in states])
        joint = softmax(logs)
        return _combined(question, options, np.log(np.maximum(softmax(logs[:, :-1]), 1e-30)), joint[:, -1])

    def write(self, audio: AudioState, question: str, options: Sequence[str] = ()) -> Answer:
        """Free text: of each window's most probable text, the one that is most probable in all windows."""
        prompt = self.tokenizer.encode(prompt_of(question, options)).ids
        states = [self.lm.read_text(state, prompt) for state in audio.states]
        written = [self.lm.write(row, _LONGEST_ANSWER) for state in states for row in _rows(state)]
        texts = list({tuple(tokens): 0 for tokens in written})
        unable = tuple(self.tokenizer.encode(f" {CANNOT_TELL}").ids)
        logs = np.concatenate([self.lm.log_likelihoods(state, [*texts, unable]) for state in states])
        means = logs[:, :-1].mean(0)
        best = int(means.argmax())
        cannot_tell = float(np.exp(logs[:, -1]).mean())
        answer = self.tokenizer.decode(list(texts[best]), skip_special_tokens=False).strip()
        return Answer(question, answer, math.exp(float(means[best])), cannot_tell, ())

    def _after(self, audio: AudioState, prompt: list[int], prefix: tuple[int, ...]) -> Iterator[tuple[Floats, Floats]]:
        """Of every window, the logits after the prompt, and after prompt and prefix."""
        for state in audio.states:
            first = self.lm.read_text(state, prompt)
            following = self.lm.read_text(first, prefix) if prefix else first
            yield from zip(first.logits, following.logits, strict=True)


def check_question(question: str, options: Sequence[str]) -> None:
    """Check a question and its options before anything is loaded.

    Raises:
        RequestError: the question is empty or too long, or the options are not several different texts.
    """
    if not question.strip():
        raise RequestError("question: is empty", "question")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise RequestError(
            f"question: {len(question)} characters; at most {MAX_QUESTION_CHARACTERS} are allowed", "question"
        )
    if len(options) == 1 or len(options) > MAX_OPTIONS:
        raise RequestError(f"options: {len(options)}; 2 to {MAX_OPTIONS} are allowed, or none", "options")
    folded = [option.strip().casefold() for option in options]
    if "" in folded:
        raise RequestError("options: one is empty", "options")
    if twice := next((text for index, text in enumerate(folded) if text in folded[:index]), None):
        raise RequestError(f"options: {twice!r} is there twice", "options")


def split_windows(samples: int, window: int) -> list[tuple[int, int]]:
    """Windows that cover all samples; the last one ends with the audio, and overlaps with the one before it."""
    if samples <= window:
        return [(0, samples)]
    starts = [*range(0, samples - window, window), samples - window]
    return [(start, start + window) for start in starts]


def _batches(windows: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        yield windows[start : start + _WINDOWS_AT_ONCE]


def _rows(state: LMState) -> Iterator[LMState]:
    for row in range(len(state.logits)):
        rows = slice(row, row + 1)
        yield LMState({name: value[rows] for name, value in state.cache.items()}, state.logits[rows])


def _combined(question: str, options: tuple[str, ...], logs: Floats, unable: Floats) -> Answer:
    """The weighted mean of log-probabilities [rows, options]; a row weighs as much as it can tell."""
    weights = np.maximum(1 - unable, _SMALLEST_WEIGHT)
    shares = softmax(np.asarray(weights @ logs / weights.sum(), np.float32))
    cannot_tell, best = float(unable.mean()), int(shares.argmax())
    answer = CANNOT_TELL if cannot_tell > 0.5 else options[best]
    probability = cannot_tell if cannot_tell > 0.5 else float(shares[best])
    listed = tuple(Option(text, float(share)) for text, share in zip(options, shares, strict=True))
    return Answer(question, answer, probability, cannot_tell, listed)


def _open(path: Path, threads: int) -> Session:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = engine_threads(threads)
    settings.log_severity_level = 3
    try:
        session: Session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions for invalid graphs
        raise BundleError(
            f"bundle {path.parent}: {path.name} cannot be loaded ({' '.join(str(error).split())})"
        ) from error
    return session

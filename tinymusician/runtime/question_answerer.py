"""Answers questions about audio with a bundle: ONNX Runtime and NumPy only.

The model has learnt from clips of one length, the window. Longer audio is judged in windows, whose log-probabilities
are averaged. Each window has the weight 1 - P(cannot tell). The whole clip is "cannot tell" only if every window is, so
leading silence has no effect. Shorter audio is repeated until it fills a window, and audio that is louder or quieter
than the training clips is brought to their level.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinymusician.errors import EngineError, RequestError
from tinymusician.runtime.answers import option_probabilities, scored_tokens, summed
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion, open_audio_lm
from tinymusician.runtime.audio_windows import at_level, split_windows
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.finer_attributes import finer_question
from tinymusician.runtime.language_model import LanguageModel, LMState
from tinymusician.runtime.open_session import SessionFactory
from tinymusician.runtime.option_values import option_values
from tinymusician.runtime.prompts import CANNOT_TELL, MAX_LETTERS, MAX_NEW_TOKENS, build_prompt, normalize_text
from tinymusician.runtime.question_checks import check_length, check_question, check_tokens
from tinymusician.runtime.softmax import softmax
from tinymusician.runtime.text import read_tokenizer
from tinymusician.runtime.value_names import compared_attribute
from tinymusician.runtime.yes_no import YesNoQuestion, yes_no_question

Samples = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]
_MAX_SAMPLE = 1000
_WINDOW_BATCH = 8
_MAX_TEXTS = 8
"""Texts of windows that are compared in all windows, the most frequent ones."""
_WHOLE_WINDOW = 0.9
"""The share of a window that audio must fill for attributes that hold for a window alone."""
_SMALLEST_WEIGHT, _SMALLEST = 1e-6, 1e-30
Check = Callable[[], None]
"""Called between pieces of work; it may raise, to end the work."""


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
class AudioInfo:
    """What the answers are about: the length of the audio, and the number of windows it was judged in."""

    audio_seconds: float
    windows: int


class AudioState:
    """Audio that has been read: one row of the language model's state per window, and what was chosen about it."""

    def __init__(self, info: AudioInfo, states: list[LMState], check: Check) -> None:
        self.info, self.states, self.check = info, states, check
        self.chosen: dict[tuple[str, tuple[str, ...]], Answer] = {}


class QuestionAnswerer:
    """Answers questions with one bundle."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Check and load the bundle; with 0 `threads`, there are as many as this process may use.

        Raises:
            BundleError: it is incomplete, damaged, of another kind, or cannot be loaded here.
        """
        self.manifest = open_audio_lm(folder)
        self.shape = self.manifest.architecture
        open_session = SessionFactory(threads)
        self._encoder = open_session(folder / self.manifest.file("audio_encoder"))
        self.lm = LanguageModel(open_session(folder / self.manifest.file("lm")), self.shape)
        self.tokenizer = read_tokenizer(folder / self.manifest.file("tokenizer"))

    def read(self, wave: Samples, check: Check = lambda: None) -> AudioState:
        """Read mono audio at the bundle's rate, once for all questions.

        `check` is called before every piece of work here and for the questions; what it raises ends the work.

        Raises:
            RequestError: it is too short, too long, or has samples that are not finite.
        """
        rate = self.shape.sampling_rate
        seconds = len(wave) / rate
        check_length(seconds)
        if not np.isfinite(wave).all() or np.abs(wave).max() > _MAX_SAMPLE:
            raise RequestError(
                f"audio: has samples that are not finite, or above {_MAX_SAMPLE}; full scale is 1", "audio"
            )
        window = round(self.shape.window_seconds * rate)
        wave = at_level(wave, window, self.shape.levels)
        wave = np.resize(wave, max(len(wave), window))  # repeats it
        windows = split_windows(len(wave), window)
        states = []
        for batch in _batches(windows):
            check()
            states.append(self.lm.prefill_audio(self.embed(np.stack([wave[start:end] for start, end in batch]))))
        return AudioState(AudioInfo(seconds, len(windows)), states, check)

    def embed(self, waves_BN: Samples) -> Floats:
        """The embeddings of clips of equal length, [B, T, W]."""
        try:
            (embeddings,) = self._encoder.run(["embeddings"], {"audio": waves_BN})
        except Exception as error:  # ONNX Runtime's exceptions
            raise as_engine_error("the audio encoder", error) from error
        if not np.isfinite(embeddings).all():
            raise EngineError("the audio encoder: its results are not numbers; the bundle is damaged")
        return embeddings

    def without_audio(self) -> AudioState:
        """The state of a model that gets no audio at all, for a baseline by text alone."""
        nothing = np.zeros((1, 0, self.shape.width), np.float32)
        return AudioState(AudioInfo(0.0, 0), [self.lm.prefill_audio(nothing)], lambda: None)

    def ask(self, audio: AudioState, question: str, options: Sequence[str] = ()) -> Answer:
        """Answer a question; with options, the answer is one of them.

        Without options, the answer is written out. If that is a value of an attribute, all its values are judged: the
        question was about this attribute, in the user's words. So it was if it names several of its values. Yes or no
        follows from the probabilities of the values that the question names; if it names none, the answer is the
        attribute's value.

        Raises:
            RequestError: the question is empty or too long, the options are not several different texts, or the
                attribute is one of a window, and the audio is longer or shorter.
            EngineError: the bundle's graphs fail.
        """
        check_question(question, options)
        check_tokens(self.tokenizer, question, options)
        questions = self.manifest.questions
        if {normalize_text(option) for option in options} == {"yes", "no"}:
            answer = self.ask(audio, question)
            if {option.text for option in answer.options} == {"yes", "no"}:
                return _in_order(answer, options)
        plain = normalize_text(question).rstrip("?")
        listed = next((one for one in questions if normalize_text(one.text).rstrip("?") == plain), None)
        self._check_windows(audio, listed)
        if options:
            return self._choose_among(audio, question, options)
        if listed:
            return self._ask_about(audio, question, listed)
        written = self.generate(audio, question)
        if about := yes_no_question(question, written.answer, questions):
            self._check_windows(audio, about.attribute)
            return self._yes_or_no(audio, question, about)
        attribute = next((one for one in questions if written.answer in one.options), None)
        if attribute := attribute or compared_attribute(question, questions):
            self._check_windows(audio, attribute)
            return self._ask_about(audio, question, attribute)
        return written

    def _ask_about(self, audio: AudioState, question: str, attribute: AttributeQuestion) -> Answer:
        """The answer to an attribute's own question, so it is the same for all words that mean it."""
        return replace(self.choose(audio, attribute.text, attribute.options), question=question)

    def _check_windows(self, audio: AudioState, about: AttributeQuestion | None) -> None:
        """Check that an attribute of a window, such as its number of notes, is not taken for one of other audio.

        Raises:
            RequestError: the attribute is one of a window, and the audio is longer or shorter.
        """
        if about is not None and about.per_window and not self._is_one_window(audio.info):
            raise RequestError(
                f"audio: lasts {audio.info.audio_seconds:g} s; the answer to {about.text!r} is one about "
                f"{self.shape.window_seconds:g} s; {_WHOLE_WINDOW * self.shape.window_seconds:g} to "
                f"{self.shape.window_seconds:g} s of audio are needed (start and seconds choose them)",
                "audio",
            )

    def _is_one_window(self, info: AudioInfo) -> bool:
        """Whether audio is as long as a window, or hardly shorter."""
        return info.windows == 1 and info.audio_seconds >= _WHOLE_WINDOW * self.shape.window_seconds

    def _yes_or_no(self, audio: AudioState, question: str, about: YesNoQuestion) -> Answer:
        """Yes is as probable as the named values are, all together; without such values, theirs are the answer."""
        if not about.named:
            return self._ask_about(audio, question, about.attribute)
        judged = [self.choose(audio, one.attribute.text, one.attribute.options) for one in about.named]
        shares = [
            sum(option.probability for option in answer.options if option.text in one.values)
            for one, answer in zip(about.named, judged, strict=True)
        ]
        yes = min(math.prod(shares), 1.0)  # of float32 sums
        return _answer(question, ("yes", "no"), (yes, 1 - yes), max(answer.cannot_tell for answer in judged))

    def _choose_among(self, audio: AudioState, question: str, options: Sequence[str]) -> Answer:
        """Choose one of a user's options, by the values that they name."""
        named = option_values(options, self.manifest.questions)
        about = named.attribute
        self._check_windows(audio, about)
        text = question if about is None or not named.is_complete else about.text
        answer = self.choose(audio, text, named.texts)
        cannot_tell = answer.cannot_tell
        if about is not None and not named.is_complete:  # a word that the model does not know says nothing of the audio
            cannot_tell = self.choose(audio, about.text, about.options).cannot_tell
        shares = summed([option.probability for option in answer.options], named.members)
        return _answer(question, options, shares, cannot_tell)

    def choose(self, audio: AudioState, question: str, options: tuple[str, ...]) -> Answer:
        """Choose one of the options by the likelihood of its text, averaged over all rotations of their order.

        More options than there are letters are not listed in the prompt, so there is nothing to rotate. The options may
        be of any length: `ask` is for what users give. Options that follow from a finer attribute, as the mode from the
        key, have the sums of its probabilities. Nothing is computed twice about the same audio.

        Raises:
            EngineError: the bundle's graphs fail.
        """
        if (question, options) not in audio.chosen:
            audio.chosen[question, options] = self._choose(audio, question, options)
        return audio.chosen[question, options]

    def _choose(self, audio: AudioState, question: str, options: tuple[str, ...]) -> Answer:
        if finer := finer_question(options, self.manifest.questions):
            fine = self.choose(audio, finer.question.text, finer.question.options)
            shares = summed([option.probability for option in fine.options], finer.members)
            return _answer(question, options, shares, fine.cannot_tell)
        logs, cannot_tell = [], []
        is_listed = len(options) <= MAX_LETTERS
        for by in range(len(options) if is_listed else 1):
            rotated = options[by:] + options[:by]
            prompt = self.tokenizer.encode(build_prompt(question, rotated if is_listed else ())).ids
            texts = scored_tokens(self.tokenizer, rotated, self.shape.end)
            windows = [option_probabilities(each) for each in self._text_likelihoods(audio, prompt, texts)]
            logs.append([np.roll(np.log(np.maximum(one.options, _SMALLEST)), by) for one in windows])
            cannot_tell.append([one.cannot_tell for one in windows])
        return _combined(question, options, np.mean(logs, axis=0), np.mean(cannot_tell, axis=0))

    def ask_all(self, audio: AudioState) -> list[Answer]:
        """Answer the bundle's questions about all attributes; of longer or shorter audio, those that hold for any.

        Raises:
            RequestError: the bundle has none.
        """
        if not self.manifest.questions:
            raise RequestError("question: this bundle lists none; one is needed", "question")
        is_window = self._is_one_window(audio.info)
        return [self._ask_attribute(audio, one) for one in self.manifest.questions if is_window or not one.per_window]

    def _ask_attribute(self, audio: AudioState, question: AttributeQuestion) -> Answer:
        answer = self.choose(audio, question.text, question.options)
        return Answer(**{**vars(answer), "attribute": question.attribute})

    def generate(self, audio: AudioState, question: str, options: Sequence[str] = ()) -> Answer:
        """Free text: of the windows' most probable texts, the one that is most probable in all windows."""
        prompt = self.tokenizer.encode(build_prompt(question, options)).ids
        written = []
        for state in audio.states:
            audio.check()
            written += [self.lm.generate(row, MAX_NEW_TOKENS) for row in _rows(self.lm.prefill_text(state, prompt))]
        texts = [text for text, _ in Counter(map(tuple, written)).most_common(_MAX_TEXTS)]
        refusal = self.tokenizer.encode(f" {CANNOT_TELL}").ids
        logs = self._text_likelihoods(audio, prompt, [[*text, self.shape.end] for text in (*texts, refusal)])
        cannot_tell = np.exp(logs[:, -1])
        means = _window_weights(cannot_tell) @ logs[:, :-1]
        best, nothing = int(means.argmax()), float(cannot_tell.min())
        if nothing > 0.5:
            return Answer(question, CANNOT_TELL, nothing, nothing, ())
        text = self.tokenizer.decode(list(texts[best]), skip_special_tokens=False).strip()
        return Answer(question, text, math.exp(float(means[best])), nothing, ())

    def _text_likelihoods(self, audio: AudioState, prompt: list[int], texts: Sequence[Sequence[int]]) -> Floats:
        """The log-likelihood of every text after the prompt, for every window, [windows, texts]."""
        logs = []
        for state in audio.states:
            audio.check()
            logs.append(self.lm.log_likelihoods(self.lm.prefill_text(state, prompt), texts))
        return np.concatenate(logs)


def _batches(windows: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(windows), _WINDOW_BATCH):
        yield windows[start : start + _WINDOW_BATCH]


def _rows(state: LMState) -> Iterator[LMState]:
    for row in range(len(state.logits)):
        rows = slice(row, row + 1)
        yield LMState({name: value[rows] for name, value in state.cache.items()}, state.logits[rows])


def _window_weights(cannot_tell_W: Floats) -> Floats:
    """A window weighs as much as it can tell; together they weigh 1."""
    weights = np.maximum(1 - cannot_tell_W, _SMALLEST_WEIGHT)
    return np.asarray(weights / weights.sum())


def _combined(question: str, options: tuple[str, ...], logs_WO: Floats, cannot_tell_W: Floats) -> Answer:
    """The weighted mean of the windows' log-probabilities; a window weighs as much as it can tell."""
    shares = softmax(np.asarray(_window_weights(cannot_tell_W) @ logs_WO, np.float32))
    return _answer(question, options, shares.tolist(), float(cannot_tell_W.min()))


def _in_order(answer: Answer, options: Sequence[str]) -> Answer:
    """An answer of yes or no with a user's spelling and order of the two."""
    texts = {normalize_text(option): option for option in options}
    given = {texts[option.text]: option.probability for option in answer.options}
    chosen = texts.get(answer.answer, answer.answer)
    return replace(answer, answer=chosen, options=tuple(Option(option, given[option]) for option in options))


def _answer(question: str, options: Sequence[str], shares: Sequence[float], nothing: float) -> Answer:
    best = int(np.argmax(shares))
    answer, probability = (CANNOT_TELL, nothing) if nothing > 0.5 else (options[best], shares[best])
    listed = tuple(Option(text, share) for text, share in zip(options, shares, strict=True))
    return Answer(question, answer, probability, nothing, listed)

"""A bundle that answers questions, as the judge of clips: what are their instrument, tempo, key."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.embedding import windows
from tinymusician.json_types import JsonObject
from tinymusician.runtime.audio_lm_bundle import AttributeQuestion, open_audio_lm
from tinymusician.runtime.audio_reader import Wave
from tinymusician.runtime.prompt_claims import claimable
from tinymusician.runtime.prompts import MIN_SECONDS
from tinymusician.runtime.question_answerer import QuestionAnswerer


class QuestionJudge:
    """Asks about every attribute that prompts state. The bundle is loaded when the first clip comes."""

    def __init__(self, folder: Path) -> None:
        """Read the bundle's manifest.

        Raises:
            BundleError: it is not a bundle that answers questions, or damaged.
        """
        self._folder, manifest = folder, open_audio_lm(folder)
        self.rate = manifest.architecture.sampling_rate
        self.questions: tuple[AttributeQuestion, ...] = tuple(claimable(manifest.questions))
        self.facts: JsonObject = {"name": manifest.name, "files": {file.role: file.sha256 for file in manifest.files}}

    def __call__(self, waves: Sequence[Wave]) -> dict[str, Floats]:
        """By attribute, the probability of every option, [N, options]; they sum to less where little can be told."""
        states = [self._answerer.read(self._readable(wave)) for wave in waves]
        probabilities: dict[str, Floats] = {}
        for question in self.questions:
            answers = [self._answerer.choose(state, question.text, question.options) for state in states]
            rows = [[option.probability * (1 - one.cannot_tell) for option in one.options] for one in answers]
            probabilities[question.attribute] = np.array(rows, np.float32)
        return probabilities

    def _readable(self, wave: Wave) -> Wave:
        """A clip that is long enough, with finite samples alone."""
        shortest = round(MIN_SECONDS * self.rate)
        whole = wave if len(wave) >= shortest else windows(wave, shortest)[0]
        return np.nan_to_num(whole, posinf=0, neginf=0).astype(np.float32)

    @cached_property
    def _answerer(self) -> QuestionAnswerer:
        return QuestionAnswerer(self._folder)

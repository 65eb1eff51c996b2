"""The words of band-skills' questions: how each attribute is asked for, and what no clip tells.

A model that is trained from scratch knows the words of its training alone. So every attribute has nouns, which common
sentences name, and sentences of its own; training also varies how they are written. `held_out` texts are in no
training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter

_LOWER_SHARE, _NO_MARK_SHARE, _LEAD_IN_SHARE, _TAIL_SHARE = 0.25, 0.15, 0.15, 0.1


@dataclass(frozen=True)
class Phrasing:
    """How an attribute is asked for: in training, in the test only, and as yes or no (`{}` is the value).

    The first of `sentences` is the one that bundles list.
    """

    sentences: tuple[str, ...]
    nouns: tuple[str, ...]
    held_out: tuple[str, ...]
    yes_no: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of training."""
        of_nouns = (text.format(noun) for noun in self.nouns for text in _WORDS.noun_texts)
        return tuple(dict.fromkeys((*self.sentences, *(text[0].upper() + text[1:] for text in of_nouns))))


@dataclass(frozen=True)
class _Words:
    """What question_texts.yaml contains."""

    attributes: Mapping[str, Phrasing]
    captions: tuple[str, ...]
    unanswerable: tuple[str, ...]
    unanswerable_held_out: tuple[str, ...]
    noun_texts: tuple[str, ...]
    lead_ins: tuple[str, ...]
    tails: tuple[str, ...]


_WORDS = TypeAdapter(_Words).validate_python(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8")))
PHRASINGS = _WORDS.attributes
CAPTIONS = _WORDS.captions
UNANSWERABLE = _WORDS.unanswerable
UNANSWERABLE_HELD_OUT = _WORDS.unanswerable_held_out


def augment_text(text: str, rng: random.Random) -> str:
    """A text as people write it: now and then in lower case, without its mark, or after a few words."""
    if rng.random() < _LEAD_IN_SHARE:
        text = rng.choice(_WORDS.lead_ins) + text[0].lower() + text[1:]
    if rng.random() < _TAIL_SHARE:
        text = f"{text[:-1]}{rng.choice(_WORDS.tails)}{text[-1]}"
    if rng.random() < _NO_MARK_SHARE:
        text = text.rstrip("?.")
    return text.lower() if rng.random() < _LOWER_SHARE else text

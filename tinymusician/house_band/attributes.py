"""The attributes of a rendered clip, and captions that state them in MusicCaps' two styles.

A caption in MusicCaps is a list of aspects ("fast tempo, solo fiddle, reel, cheerful") and a free sentence. Both are
derived from the same attributes, so every word of a caption is true of its clip.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PITCH_CLASSES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
INSTRUMENTS = {"piano": 0, "church organ": 19, "fiddle": 40, "trumpet": 56, "flute": 73, "banjo": 105}
"""The instruments: name and General MIDI program."""

TEMPI = {"slow": 48, "medium": 24, "fast": 16}
"""Codec frames per quarter note: whole numbers, so that every beat is on the codec's grid."""

FRAME_RATE = 50
_TEMPO_WORDS = {
    "slow": ("slow", "very slow", "slow tempo"),
    "medium": ("medium tempo", "moderate", "moderate tempo"),
    "fast": ("fast", "very fast", "fast tempo"),
}
_MOODS = {
    ("slow", "major"): ("calm", "peaceful"),
    ("slow", "minor"): ("sad", "melancholic"),
    ("medium", "major"): ("happy", "warm"),
    ("medium", "minor"): ("wistful", "serious"),
    ("fast", "major"): ("cheerful", "joyful"),
    ("fast", "minor"): ("restless", "dramatic"),
}


@dataclass(frozen=True)
class ClipAttributes:
    """The attributes that a clip was rendered from; `title` and `start` (quarters) are its position in the corpus."""

    title: str
    start: float
    instrument: str
    tempo: str
    kind: str
    tonic: int
    mode: str

    @property
    def key(self) -> str:
        """The sounding key, such as `D major`."""
        return f"{PITCH_CLASSES[self.tonic]} {self.mode}"


def aspects(facts: ClipAttributes, rng: random.Random) -> list[str]:
    """The aspect list of a clip: tempo, instrumentation, genre, key and emotion, in that order."""
    tempo = rng.choice(_TEMPO_WORDS[facts.tempo])
    mood = rng.choice(_MOODS[facts.tempo, facts.mode])
    return [tempo, f"solo {facts.instrument}", facts.kind, facts.key, mood]


def sentence(facts: ClipAttributes, rng: random.Random) -> str:
    """A free sentence that always names tempo and instrument, and often the other aspects."""
    tempo, _, kind, key, mood = aspects(facts, rng)
    pace = tempo.removesuffix(" tempo")
    feeling = rng.choice((f" and {mood}", "", ""))
    where = rng.choice((f" in {key}", "", ""))
    return rng.choice(
        (
            f"a {pace}{feeling} {facts.instrument} {kind}{where}",
            f"a {pace}{feeling} {kind} for {facts.instrument}{where}",
            f"a {pace}{feeling} {kind} played on the {facts.instrument}{where}",
            f"a solo {facts.instrument} plays a {pace}{feeling} {kind}{where}",
        )
    )


def caption(facts: ClipAttributes, rng: random.Random) -> str:
    """One caption in either style: the sentence three times in four, else the aspect list."""
    return sentence(facts, rng) if rng.random() < 0.75 else ", ".join(aspects(facts, rng))

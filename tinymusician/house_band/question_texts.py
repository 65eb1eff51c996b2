"""The words of band-skills' questions: how each attribute is asked for, and what no clip tells.

A model that is trained from scratch knows the words of its training alone. So every attribute has nouns, which common
sentences name, and sentences of its own; training also varies how they are written. `held_out` texts are in no
training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

_NOUN_TEXTS = (
    "What is the {}?",
    "What's the {}?",
    "Which {} is it?",
    "Which {} is this?",
    "What {} is this?",
    "What is the {} of this music?",
    "What is the {} of this tune?",
    "What's the {} of this piece?",
    "Which {} does this tune have?",
    "What {} does the piece have?",
    "Tell me the {}.",
    "Name the {}.",
    "Can you tell the {}?",
    "The {}?",
)
_LEAD_INS = ("Please: ", "Listen. ", "In this clip, ", "In this recording: ", "Please tell me, ")
_LOWER_SHARE, _NO_MARK_SHARE, _LEAD_IN_SHARE = 0.25, 0.15, 0.1


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
        return (*self.sentences, *(text.format(noun) for noun in self.nouns for text in _NOUN_TEXTS))


PHRASINGS: Mapping[str, Phrasing] = {
    "instrument": Phrasing(
        sentences=(
            "Which instrument plays?",
            "What instrument is heard?",
            "Which instrument do I hear?",
            "What instrument plays this?",
            "What is playing?",
            "What is it played on?",
            "Which instrument is used?",
            "Who plays this, and on what?",
        ),
        nouns=("instrument",),
        held_out=(
            "On which instrument is this played?",
            "What am I hearing, which instrument?",
            "Which instrument is playing this tune?",
        ),
        yes_no=(
            "Is the instrument a {}?",
            "Does a {} play?",
            "Is this a {}?",
            "Is it a {}?",
            "Do I hear a {}?",
            "Is it played on the {}?",
            "Is there a {} in this recording?",
        ),
    ),
    "family": Phrasing(
        sentences=(
            "To which family does the instrument belong?",
            "Which family of instruments is heard?",
            "Which group of instruments is this?",
            "What kind of instrument is it?",
            "What type of instrument plays?",
            "Which type of instrument do I hear?",
        ),
        nouns=("family of the instrument", "kind of instrument", "instrument family"),
        held_out=("Which kind of instrument plays?", "What sort of family is the instrument of?"),
        yes_no=(
            "Does the instrument belong to the {}?",
            "Is the family of the instrument {}?",
            "Is it one of the {}?",
            "Is the kind of instrument {}?",
        ),
    ),
    "tempo": Phrasing(
        sentences=(
            "How fast is the music?",
            "How fast is this?",
            "How fast is it?",
            "How fast is this tune played?",
            "How quick is the music?",
            "How quick is it?",
            "How quickly is it played?",
            "How slow is it?",
            "Is it slow or fast?",
            "Is this fast or slow?",
            "How many beats per minute does it have?",
            "What speed is it played at?",
        ),
        nouns=("tempo", "speed", "pace"),
        held_out=("At which speed is it played?", "How quick is this tune?", "Does it go fast or slow?"),
        yes_no=(
            "Is the tempo {}?",
            "Is the music {}?",
            "Is it {}?",
            "Is this {}?",
            "Is it played at a {} tempo?",
            "Is the speed {}?",
        ),
    ),
    "key": Phrasing(
        sentences=(
            "In which key is the music?",
            "In what key is this?",
            "What key is it in?",
            "Which key is this in?",
            "In which key is it played?",
            "Which scale is used?",
            "Which scale does it use?",
            "On which note and scale is it based?",
        ),
        nouns=("key", "scale", "tonality"),
        held_out=("Which key does the melody have?", "What key does this melody use?", "In which scale is it?"),
        yes_no=(
            "Is the key {}?",
            "Is the music in {}?",
            "Is it in {}?",
            "Is this in {}?",
            "Is this tune in the key of {}?",
            "Is the scale {}?",
        ),
    ),
    "mode": Phrasing(
        sentences=(
            "Is the music major or minor?",
            "Is it major or minor?",
            "Is this in major or minor?",
            "Is this tune minor or major?",
            "Is the key major or minor?",
            "Is the scale major or minor?",
        ),
        nouns=("mode",),
        held_out=("Is it in a major or in a minor key?", "Minor or major?"),
        yes_no=(
            "Is the mode {}?",
            "Is the music in a {} key?",
            "Is it {}?",
            "Is the key {}?",
            "Is this a {} key?",
            "Is it in {}?",
        ),
    ),
    "meter": Phrasing(
        sentences=(
            "Which meter does the music have?",
            "What meter is it in?",
            "How are the beats grouped?",
            "In which time is it?",
            "Is the time duple or triple?",
            "How does one count it?",
        ),
        nouns=("meter", "time signature", "metre"),
        held_out=("Which kind of meter is heard?", "What time is this tune in?"),
        yes_no=(
            "Is the meter {}?",
            "Does the music have a {} meter?",
            "Is it in {} time?",
            "Is the time signature {}?",
            "Is this {}?",
        ),
    ),
    "note_count": Phrasing(
        sentences=(
            "How many notes are played?",
            "How many notes does the melody have?",
            "How many notes are there?",
            "How many notes does it have?",
            "How many notes do I hear?",
            "Can you count the notes?",
            "Count the notes.",
        ),
        nouns=("number of notes", "note count"),
        held_out=("How many notes are heard?", "How many notes are in this tune?"),
        yes_no=(
            "Are {} notes played?",
            "Is the number of notes {}?",
            "Are there {} notes?",
            "Does it have {} notes?",
        ),
    ),
    "pitch_range": Phrasing(
        sentences=(
            "How wide is the range of the melody?",
            "What is the range between the lowest and the highest note?",
            "How far is it from the lowest to the highest note?",
            "How wide is the range?",
            "How large is the compass?",
            "How big is the range of this tune?",
        ),
        nouns=("range", "pitch range", "range of the notes"),
        held_out=("How large is the range of the notes?", "How far apart are the lowest and the highest note?"),
        yes_no=("Is the range of the melody {}?", "Is the range {}?", "Is the compass {}?"),
    ),
    "contour": Phrasing(
        sentences=(
            "How does the melody move?",
            "What does the melody do?",
            "Does the melody rise or fall?",
            "Does it rise or fall?",
            "Does it go up or down?",
            "In which direction does the melody go?",
            "Where does the melody go?",
        ),
        nouns=("contour", "contour of the melody", "shape of the melody", "direction"),
        held_out=("Which way does the melody go?", "Does the tune go up or down?"),
        yes_no=(
            "Is it true that the melody {}?",
            "Is the contour such that it {}?",
            "Is it so that it {}?",
            "Would you say that the melody {}?",
        ),
    ),
    "motion": Phrasing(
        sentences=(
            "Does the melody move by steps or by leaps?",
            "What prevails in the melody, steps or leaps?",
            "Does it move in steps or leaps?",
            "Are most intervals steps or leaps?",
            "Steps or leaps?",
            "Is it more steps or leaps?",
        ),
        nouns=("motion of the melody", "kind of motion"),
        held_out=("Are there more steps or more leaps?", "Does the tune leap or does it step?"),
        yes_no=(
            "Does the melody move by {}?",
            "Are most intervals {}?",
            "Are there more {}?",
            "Does it move mostly by {}?",
        ),
    ),
    "busier_half": Phrasing(
        sentences=(
            "Which half has more notes?",
            "In which half are there more notes?",
            "Which half is the busy one?",
            "Where are more notes, in the first or in the second half?",
            "Is the first or the second half busier?",
            "Which half of it has more notes?",
        ),
        nouns=("busier half", "half with more notes"),
        held_out=("Which half is busier?", "In which half is more going on?"),
        yes_no=(
            "Does the {} have more notes?",
            "Are there more notes in the {}?",
            "Is the {} busier?",
        ),
    ),
    "highest_note": Phrasing(
        sentences=(
            "What is the highest note?",
            "Which note is highest?",
            "How high does it go?",
            "What is the top note?",
            "What is the note at the top?",
            "Up to which note does it go?",
        ),
        nouns=("highest note", "top note", "highest pitch"),
        held_out=("What is the name of the highest note?", "Which note is the highest of all?"),
        yes_no=("Is the highest note {}?", "Is {} the highest note?", "Is the top note {}?", "Does it go up to {}?"),
    ),
}
CAPTIONS = (
    "Describe the music.",
    "What do you hear?",
    "Describe this tune.",
    "Describe this clip.",
    "What is this?",
    "What kind of music is this?",
    "Tell me about this music.",
)
UNANSWERABLE = (
    "Who composed this?",
    "Who wrote this tune?",
    "Who is the composer?",
    "Who sings?",
    "Who is singing here?",
    "What is the name of the singer?",
    "Which words are sung?",
    "What are the lyrics?",
    "In which language is it sung?",
    "What is the title?",
    "What is this tune called?",
    "What is the name of this piece?",
    "Which band is this?",
    "Who is the artist?",
    "From which album is it?",
    "When was it recorded?",
    "In which year was this written?",
    "Where was it recorded?",
    "From which country does it come?",
    "Is it sad?",
    "Is it happy?",
    "Is the music sad or happy?",
    "What is the mood?",
    "How does the music feel?",
    "Which emotion does it express?",
    "Which genre is it?",
    "What is the genre?",
    "What style of music is it?",
    "Is this jazz?",
    "Is this rock?",
    "Does someone sing?",
    "Is there a drum?",
    "Are there drums?",
    "Is it a live recording?",
    "Is it loud?",
    "How loud is it?",
    "How long is it?",
    "What are the chords?",
    "Which chord is played?",
    "Is it out of tune?",
    "What is the weather like?",
    "What is two and two?",
    "Who are you?",
    "What is your name?",
    "Hello.",
    "Can you help me?",
    "Is it good?",
    "Do you like it?",
    "How many instruments play?",
    "How many musicians are there?",
    "What is the tempo in beats per minute?",
    "What is the exact tempo?",
    "What is the lowest note?",
    "Which is the deepest note?",
    "What is the first note?",
    "With which note does it end?",
    "Which instruments do not play?",
    "Which instrument is missing?",
    "What is the relative key?",
    "What is the dominant of the key?",
    "Is it a waltz?",
    "Which dance is this?",
    "Is there a melody in the bass?",
    "Who plays it best?",
)
"""Questions to which no attribute is the answer; the last ones are not about music."""
UNANSWERABLE_HELD_OUT = (
    "Who made this music?",
    "What is it called?",
    "When was this tune written?",
    "Is the mood happy?",
    "Which style is it?",
    "Which drum is played?",
    "How many instruments are there?",
    "What is the BPM?",
    "Which note is the lowest?",
    "Which instrument is not playing?",
    "What is the relative minor of the key?",
    "Is this a waltz?",
)


def augment_text(text: str, rng: random.Random) -> str:
    """A text as people write it: now and then in lower case, without its mark, or after a few words."""
    if rng.random() < _LEAD_IN_SHARE:
        text = rng.choice(_LEAD_INS) + text[0].lower() + text[1:]
    if rng.random() < _NO_MARK_SHARE:
        text = text.rstrip("?.")
    return text.lower() if rng.random() < _LOWER_SHARE else text

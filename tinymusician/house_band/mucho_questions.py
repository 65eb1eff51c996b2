"""Questions about the house band's clips with MuChoMusic's three kinds of distractors (ISMIR 2024, arXiv 2408.01337).

    related      another value of the attribute that is asked for
    true         a value of another attribute that the clip has
    unrelated    a value of another attribute that it does not have

The text alone rules out two of the four options, so a text-only model scores one half. The hard questions are
therefore the headline, and these show the difference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tinymusician.house_band.corpus import Clip
from tinymusician.house_band.question_texts import PHRASINGS
from tinymusician.house_band.skill_questions import VERSION, ClipPools, clip_values, other_skills
from tinymusician.house_band.skills import SKILLS, Skill
from tinymusician.understand.questions import Question


def mucho_questions(clips: Sequence[Clip], per_attribute: int, seed: int) -> list[Question]:
    """`per_attribute` questions of every attribute, with their four options in random order."""
    rng = random.Random(f"band-skills/{VERSION}/{seed}/mucho")
    questions = []
    for skill in SKILLS.values():
        pools = ClipPools(clip_values(skill, clips), rng)
        if len(pools.values) < 2:
            continue
        for _ in range(per_attribute):
            value, other = pools.least_used(2)
            index = pools.take(value)
            options = [value, other, *_of_another_attribute(skill, clips[index], rng)]
            questions.append(
                Question(
                    format="choice",
                    attribute=skill.name,
                    clip=index,
                    tune=clips[index].family,
                    text=rng.choice(PHRASINGS[skill.name].texts),
                    options=tuple(rng.sample(options, len(options))),
                    answer=value,
                    value=value,
                )
            )
    return questions


def _of_another_attribute(skill: Skill, clip: Clip, rng: random.Random) -> tuple[str, str]:
    """A value of another attribute that the clip has, and one that it does not have; no answer to `skill` itself."""
    values = {other.name: other.value(clip) for other in other_skills(skill)}
    name, value = rng.choice([(name, value) for name, value in values.items() if value is not None])
    return value, rng.choice([answer for answer in SKILLS[name].answers if answer != value])

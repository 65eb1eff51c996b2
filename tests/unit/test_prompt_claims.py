"""What prompts claim, and that clips which keep their claims score higher."""

from __future__ import annotations

import pytest

from tinymusician.errors import RequestError
from tinymusician.house_band.skill_questions import attribute_questions
from tinymusician.runtime.prompt_claims import claims_of, rankable_claims

QUESTIONS = attribute_questions()


@pytest.mark.parametrize(
    ("prompt", "claims"),
    [
        ("a fast fiddle reel in D major", {"instrument": "fiddle", "tempo": "fast", "key": "D major"}),
        ("Very FAST, solo Violin", {"instrument": "fiddle", "tempo": "fast"}),
        ("slow tempo, pipe organ, C# minor", {"instrument": "church organ", "tempo": "slow", "key": "Db minor"}),
        ("a moderate march in F# major", {"tempo": "medium", "key": "F# major"}),
        ("a waltz in a minor key", {}),
        ("fast, then slow, for flute", {"instrument": "flute"}),
        ("a duet of flute and piano, fast", {"tempo": "fast"}),
        ("breakfast with pianos", {}),
        ("C major scales, then C#", {"key": "C major"}),
        ("", {}),
        ("not a flute", {}),
        ("a fiddle tune, no piano, fast", {"instrument": "fiddle", "tempo": "fast"}),
        ("it isn't slow, for banjo", {"instrument": "banjo"}),
    ],
)
def test_claims_of_prompts(prompt: str, claims: dict[str, str]) -> None:
    assert {claim.question.attribute: claim.value for claim in claims_of(prompt, QUESTIONS)} == claims


def test_prompt_without_claims_cannot_be_ranked_by() -> None:
    with pytest.raises(RequestError, match=r"names nothing .* instrument \(piano, church organ, fiddle, …\); tempo"):
        rankable_claims("something nice", QUESTIONS)
    assert len(rankable_claims("a slow banjo", QUESTIONS)) == 2

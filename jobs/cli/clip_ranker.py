"""`tmctl generate --best-of`: of several clips of each prompt, the one that keeps best what the prompt names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli.output import print_progress
from tinymusician.bundle_refs import resolve_bundle

if TYPE_CHECKING:
    from tinymusician.runtime.audio import Samples
    from tinymusician.runtime.generator import GenerationRequest


class ClipRanker:
    """Chooses the best of several clips of every prompt."""

    def __init__(self, judge: str, prompts: Sequence[str | None], best_of: int, threads: int) -> None:
        """Load the judge; every `best_of` clips are of one prompt.

        Raises:
            RequestError: a prompt names nothing that clips can be ranked by.
        """
        from tinymusician.runtime.prompt_claims import rankable_claims
        from tinymusician.runtime.question_answerer import QuestionAnswerer

        self._best_of = best_of
        self._answerer = QuestionAnswerer(resolve_bundle(judge, print_progress), threads)
        for prompt in prompts:
            rankable_claims(prompt or "", self._answerer.manifest.questions)

    def best(
        self, requests: Sequence[GenerationRequest], waves: Sequence[Samples], rate: int
    ) -> tuple[list[GenerationRequest], list[Samples], list[tuple[float, ...]]]:
        """Of the clips of every prompt the best one: its request and wave, and the adherence of all of them."""
        from tinymusician.runtime.best_of import rank

        chosen, scores = [], []
        for start in range(0, len(waves), self._best_of):
            ranking = rank(self._answerer, requests[start].prompt or "", waves[start : start + self._best_of], rate)
            chosen.append(start + ranking.best)
            scores.append(tuple(round(score, 4) for score in ranking.scores))
        return [requests[n] for n in chosen], [waves[n] for n in chosen], scores

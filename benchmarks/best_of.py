"""Best of n: what ranking by a bundle that answers questions gains, measured by models that it does not optimise.

    python -m benchmarks.best_of [--judge band-mu] [--model band-small] [--prompts 100] [--best-of 4] [--seconds 5]

For captions of test tunes that name an instrument, a tempo or a key, `--best-of` clips are generated, each from a seed
of its own. Of the mean clip and of the best one: the judge's adherence, the probability that band-tagger gives to what
the caption names, and band-clap's score; and the gain, best minus mean, with its 95 % interval over the prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.report import report
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.evaluate.bootstrap import Interval, mean_interval
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.clap_score import clap_by_clip
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats
from tinymusician.house_band.corpus import HELD_OUT_CLIPS, load_test_split
from tinymusician.house_band.tagger import HouseBandTagger
from tinymusician.house_band.tagger_model import BandTagger
from tinymusician.models.musicgen import model_location
from tinymusician.runtime.audio import Samples
from tinymusician.runtime.audio_reader import resampled
from tinymusician.runtime.best_of import Ranking, rank
from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, load_generator
from tinymusician.runtime.prompt_claims import PromptClaim, claims_of
from tinymusician.runtime.question_answerer import QuestionAnswerer
from tinymusician.user_folders import user_folder

BATCH = 8


def main() -> None:
    """Generate, rank, measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="band-mu")
    parser.add_argument("--model", default="band-small")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--best-of", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    judge = QuestionAnswerer(resolve_bundle(options.judge))
    captions = load_test_split(user_folder("cache") / "corpus", HELD_OUT_CLIPS).captions
    claims = {text: claims_of(text, judge.manifest.questions) for text in dict.fromkeys(captions)}
    prompts = [text for text, named in claims.items() if named][: options.prompts]
    generator = load_generator(resolve_bundle(options.model))
    rate = generator.codec.shape.sampling_rate
    waves, rankings = _ranked(generator, judge, prompts, options.best_of, options.seconds)
    texts = [text for text in prompts for _ in range(options.best_of)]
    scores = {
        "adherence": np.array([score for ranking in rankings for score in ranking.scores]),
        "tagger": _tagged(waves, rate, [claims[text] for text in texts]),
        "clap": _clap(waves, rate, texts),
    }
    best = np.array([ranking.best for ranking in rankings])
    figures: dict[str, float] = {}
    for name, by_clip in scores.items():
        figures |= _figures(name, by_clip.reshape(len(prompts), options.best_of), best)
    report("best_of", figures, vars(options))


def _ranked(
    generator: MusicGenerator, judge: QuestionAnswerer, prompts: Sequence[str], best_of: int, seconds: float
) -> tuple[list[Samples], list[Ranking]]:
    """The clips of every prompt in turn, and their ranking."""
    waves, rankings = list[Samples](), list[Ranking]()
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        texts = [text for text in part for _ in range(best_of)]
        requests = [GenerationRequest(text, seconds, seed=len(waves) + number) for number, text in enumerate(texts)]
        waves += generator.generate_batch(requests)
        for text in part:
            clips = waves[len(rankings) * best_of :][:best_of]
            rankings.append(rank(judge, text, clips, generator.codec.shape.sampling_rate))
        print(f"{len(rankings)} of {len(prompts)} prompts", flush=True)
    return waves, rankings


def _figures(name: str, scores_PN: Floats, best_P: npt.NDArray[np.int64]) -> dict[str, float]:
    """The scores of the mean clip of each prompt, and of the best one; their difference with its interval."""
    mean, best = scores_PN.mean(axis=1), scores_PN[np.arange(len(scores_PN)), best_P]
    difference: Interval = mean_interval(best - mean)
    print(f"{name}: mean {mean.mean():.3f}, best {best.mean():.3f}, difference {difference}", flush=True)
    figures = {"mean": float(mean.mean()), "best": float(best.mean()), "gain": difference.value}
    figures |= {"gain/low": difference.low or 0.0, "gain/high": difference.high or 0.0}
    return {f"{name}/{part}": value for part, value in figures.items()}


def _tagged(waves: Sequence[Samples], rate: int, claims: Sequence[Sequence[PromptClaim]]) -> Floats:
    """By clip, the mean probability that band-tagger gives to what its prompt names."""
    folder = model_location("band-tagger")
    tagger, classes = HouseBandTagger(folder), BandTagger.load(folder).classes
    shares = tagger([resampled(wave, rate, tagger.rate) for wave in waves])

    def share(row: int, claim: PromptClaim) -> float:
        attribute = claim.question.attribute
        return float(shares[attribute][row][classes[attribute].index(claim.value)])

    return np.array([np.mean([share(row, claim) for claim in named]) for row, named in enumerate(claims)])


def _clap(waves: Sequence[Samples], rate: int, prompts: Sequence[str]) -> Floats:
    """By clip, band-clap's score of its prompt."""
    embedder = ClapEmbedder("band-clap")
    vectors = ClipEmbeddings.of(embedder([resampled(wave, rate, embedder.rate) for wave in waves]))
    return np.asarray(clap_by_clip(vectors, embedder.text(list(prompts))))


if __name__ == "__main__":
    main()

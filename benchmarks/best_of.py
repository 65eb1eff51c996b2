"""Best of n: what ranking by a bundle that answers questions gains, measured by models that it does not optimise.

    python -m benchmarks.best_of [--judge band-mu] [--model band-small] [--prompts 100] [--best-of 4] [--seconds 5]

For captions of test tunes that name an instrument, a tempo or a key, `--best-of` clips are generated. Of the first
clip and of the best one: the judge's adherence, the probability that band-tagger gives to what the caption names, and
band-clap's score; and the mean difference best minus first of each, with its 95 % interval over the prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

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
    firsts, bests, rankings = _ranked(generator, judge, prompts, options.best_of, options.seconds)
    adherence = np.array([ranking.scores for ranking in rankings])
    tagged = [_tagged(waves, rate, [claims[text] for text in prompts]) for waves in (firsts, bests)]
    clap = [_clap(waves, rate, prompts) for waves in (firsts, bests)]
    figures = _figures("adherence", adherence[:, 0], adherence.max(axis=1))
    figures |= _figures("tagger", *tagged) | _figures("clap", *clap)
    report("best_of", figures, vars(options))


def _ranked(
    generator: MusicGenerator, judge: QuestionAnswerer, prompts: Sequence[str], best_of: int, seconds: float
) -> tuple[list[Samples], list[Samples], list[Ranking]]:
    """Of every prompt, the first clip, the best one, and the ranking."""
    firsts, bests, rankings = list[Samples](), list[Samples](), list[Ranking]()
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        requests = [GenerationRequest(text, seconds, seed=number) for text in part for number in range(best_of)]
        waves = generator.generate_batch(requests)
        for index, text in enumerate(part):
            clips = waves[index * best_of : (index + 1) * best_of]
            rankings.append(rank(judge, text, clips, generator.codec.shape.sampling_rate))
            firsts.append(clips[0])
            bests.append(clips[rankings[-1].best])
        print(f"{len(rankings)} of {len(prompts)} prompts", flush=True)
    return firsts, bests, rankings


def _figures(name: str, first: Floats, best: Floats) -> dict[str, float]:
    """The means of both, and of their difference with its interval."""
    difference: Interval = mean_interval(best - first)
    print(f"{name}: first {first.mean():.3f}, best {best.mean():.3f}, difference {difference}", flush=True)
    figures = {"first": float(first.mean()), "best": float(best.mean()), "gain": difference.value}
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

"""Scores a bundle that answers questions beyond its training data, and measures its cost.

    python -m benchmarks.understanding --bundle DIR [--soundfont FILE.sf2 …] [--recordings DIR]

The hard questions about test tunes, rendered as in training, through the band's codec, at low sampling rates, and with
soundfonts that no training saw (Debian has `fluid-soundfont-gm` and `musescore-general-soundfont`). Then, as `tmctl
ask` answers them, questions of yes or no, the same questions without options in sentences that training never used, and
questions that no clip answers; `words` is what the model itself writes, before it is compared with the values of
attributes.
Recordings have no known answers: what the bundle says about each is printed.
Seconds and memory are those of `tmctl ask` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks.report import report
from tinymusician.house_band.corpus import CLIP_FRAMES, SEED, RenderedSplit, load_split
from tinymusician.house_band.question_texts import PHRASINGS, UNANSWERABLE_HELD_OUT
from tinymusician.house_band.skill_questions import QuestionCounts, hard_questions, training_questions
from tinymusician.house_band.skills import SKILLS
from tinymusician.house_band.synth import EVERY_KEY, SoundfontSynth
from tinymusician.house_band.tunes import TUNES, load_tunes
from tinymusician.runtime.answers import Floats
from tinymusician.runtime.audio_reader import SUFFIXES, read_clip
from tinymusician.runtime.prompts import CANNOT_TELL
from tinymusician.runtime.question_answerer import QuestionAnswerer
from tinymusician.understand.answering import FinerAnswerer
from tinymusician.understand.band_limited_clips import band_limited
from tinymusician.understand.benchmark import SystemScore, score_probabilities
from tinymusician.understand.bundle_answerer import BundleAnswerer
from tinymusician.understand.questions import Question, clip_rows
from tinymusician.understand.reconstructed_clips import load_codec, with_reconstructions
from tinymusician.user_folders import user_folder

_UNANSWERABLE_CLIPS, _YES_NO_PAIRS = 20, 12
_LOW_RATES = (11_025, 8_000, 4_000)
"""In Hz; what is above half of it is lost."""


def main() -> None:
    """Score, measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--soundfont", type=Path, action="append", default=[])
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--clips", type=int, default=1600, help="clips of test tunes, as many as the recipe's")
    parser.add_argument("--groups", type=int, default=30, help="groups of each attribute, as the recipe's")
    options = parser.parse_args()
    corpus = user_folder("cache") / "corpus"
    split = load_split(corpus, load_tunes(corpus / TUNES), "test", options.clips, SEED, EVERY_KEY)
    questions, bundle = hard_questions(split.clips, options.groups, 0), BundleAnswerer(options.bundle)
    rows = clip_rows(questions).clips
    waves = renderings(split, rows, options.soundfont)
    figures: dict[str, float] = {}
    for name, clips in waves.items():
        score = scored(name, bundle, questions, clips)
        parts = {"overall": score.overall, **score.attributes}
        for part, each in parts.items():
            interval = asdict(each.interval)
            figures |= {f"{name}/{part}/{edge}": interval[edge] for edge in ("value", "low", "high") if interval[edge]}
        figures[f"{name}/cannot tell"] = score.cannot_tell or 0.0
        print(name, {part: each.interval.as_share() for part, each in parts.items()}, flush=True)
    answerer = QuestionAnswerer(options.bundle)
    figures |= yes_or_no(answerer, split)
    figures |= open_answers(answerer, questions, rows, waves["as in training"])
    answers = answers_about(options.recordings, answerer) if options.recordings else {}
    figures |= cost(options.bundle, waves["as in training"][0])
    settings = {"bundle": str(options.bundle.name), "questions": len(questions), "clips": len(rows), "answers": answers}
    report("understanding", figures, settings)


def renderings(split: RenderedSplit, rows: list[int], fonts: list[Path]) -> dict[str, Floats]:
    """The clips `rows` as in training, and changed in every way."""
    clips = split.audio(np.array(rows))
    waves = {"as in training": clips, "through the band's codec": through_codec(clips)}
    for rate in _LOW_RATES:
        limited = band_limited(lambda part: clips[part].copy(), np.full(len(rows), rate))
        waves[f"sampled at {rate} Hz"] = limited(slice(None))
    return waves | {f"soundfont {font.name}": rendered(split, rows, font) for font in fonts}


def scored(name: str, bundle: BundleAnswerer, questions: list[Question], waves_BN: Floats) -> SystemScore:
    """The score on the audio of the questions' clips."""
    features = bundle.embed(waves_BN)[clip_rows(questions).rows]
    answerer = FinerAnswerer(bundle, bundle.attributes)
    return score_probabilities(name, questions, answerer.probabilities(features, questions))


def yes_or_no(answerer: QuestionAnswerer, split: RenderedSplit) -> dict[str, float]:
    """Of questions of yes or no: how often the answer is right, and the model's own words `VALUE, so yes`."""
    questions = training_questions(split.clips, QuestionCounts(1, _YES_NO_PAIRS, 1, 1), 0)
    questions = [question for question in questions if question.format == "yes_no"]
    answers, words, values = [], [], []
    for question in questions:
        audio = answerer.read(split.audio(np.array([question.clip]))[0])
        text = answerer.generate(audio, question.text).answer
        answers.append(answerer.ask(audio, question.text).answer == question.answer)
        words.append(text.endswith(f", so {question.answer}"))
        values.append(text.startswith(f"{question.value}, so"))
    figures = {"yes or no": answers, "yes or no/words": words, "yes or no/value in words": values}
    shares = {name: float(np.mean(right)) for name, right in figures.items()}
    print("yes or no", len(questions), shares, flush=True)
    return shares


def open_answers(
    answerer: QuestionAnswerer, questions: list[Question], rows: list[int], waves_BN: Floats
) -> dict[str, float]:
    """The share of right answers without options, by attribute, and of refusals of what no clip answers.

    Equal answers are right, and so are finer ones: `A minor` of the mode.
    """
    states = {clip: answerer.read(wave) for clip, wave in zip(rows, waves_BN, strict=True)}
    new = {name: cycle(phrasing.held_out) for name, phrasing in PHRASINGS.items()}
    right: dict[str, list[bool]] = {}
    words = []
    for question in questions:
        text, audio = next(new[question.attribute]), states[question.clip]
        finer = SKILLS[question.attribute].finer
        answers = (question.answer, *(finer.values[question.answer] if finer else ()))
        right.setdefault(question.attribute, []).append(answerer.ask(audio, text).answer in answers)
        words.append(answerer.generate(audio, text).answer in answers)
    unanswerable = [
        (states[clip], text)
        for index, text in enumerate(UNANSWERABLE_HELD_OUT)
        for clip in np.roll(rows, -index * _UNANSWERABLE_CLIPS)[:_UNANSWERABLE_CLIPS]
    ]
    refused = [answerer.ask(audio, text).answer == CANNOT_TELL for audio, text in unanswerable]
    figures = {f"open/{name}": float(np.mean(each)) for name, each in right.items()}
    figures["open/overall"] = float(np.mean([one for each in right.values() for one in each]))
    figures["open/overall/words"] = float(np.mean(words))
    figures["open/no clip answers"] = float(np.mean(refused))
    print("open", {name: round(value, 3) for name, value in figures.items()}, flush=True)
    return figures


def through_codec(waves_BN: Floats) -> Floats:
    """The clips, encoded and decoded by the house band's codec."""
    everything = np.ones(len(waves_BN), bool)
    read = with_reconstructions(lambda part: waves_BN[part].copy(), everything, load_codec("band-small"))
    return np.concatenate([read(slice(start, start + 32)) for start in range(0, len(waves_BN), 32)])


def rendered(split: RenderedSplit, rows: list[int], font: Path) -> Floats:
    """The clips, played by another soundfont."""
    band = SoundfontSynth(font)
    return np.stack(
        [band.render(split.clips[row].notes, split.clips[row].facts.instrument, CLIP_FRAMES) for row in rows]
    )


def answers_about(folder: Path, answerer: QuestionAnswerer) -> dict[str, dict[str, str]]:
    """What is said about every recording."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    answers = {}
    for path in files:
        audio = answerer.read(read_clip(path, answerer.shape.sampling_rate).wave)
        answers[path.name] = {
            str(answer.attribute): f"{answer.answer} {answer.probability:.2f}" for answer in answerer.ask_all(audio)
        }
        print(path.name, answers[path.name], flush=True)
    return answers


def cost(bundle: Path, wave: Floats) -> dict[str, float]:
    """Seconds of one question after loading, and seconds and peak memory of `tmctl ask` from a cold start."""
    import soundfile

    answerer, times = QuestionAnswerer(bundle), []
    question = answerer.manifest.questions[0]
    for _ in range(5):
        began = time.monotonic()
        answerer.ask(answerer.read(wave), question.text, question.options)
        times.append(time.monotonic() - began)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.wav"
        soundfile.write(file, wave, answerer.shape.sampling_rate)
        command = [sys.executable, "-m", "jobs.cli.main", "ask", question.text]
        command += ["--audio", str(file), "--model", str(bundle.absolute()), "--json"]
        began = time.monotonic()
        json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        seconds, peak = time.monotonic() - began, peak_of(command)
    return {"question_seconds": float(np.median(times)), "cold_start_seconds": seconds, "peak_memory_mb": peak}


_MEASURE = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def peak_of(command: list[str]) -> float:
    """The peak resident memory of a command in MB.

    A small process starts it: Linux counts what the process that starts another one has in memory as the other's peak.
    """
    measured = subprocess.run([sys.executable, "-c", _MEASURE, *command], check=True, capture_output=True, text=True)
    return int(measured.stdout) / 1e3


if __name__ == "__main__":
    main()

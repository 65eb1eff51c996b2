"""`tmctl benchmark`: score a bundle that answers questions on a published file of questions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.engine_options import Threads
from jobs.cli.output import emit, print_progress
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.errors import DataError, RequestError
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE

_NOISE_LEVEL = 0.05

if TYPE_CHECKING:
    from tinymusician.runtime.question_answerer import AudioState, QuestionAnswerer
    from tinymusician.understand.published import Ask, PublishedQuestion, PublishedScore


# Long: its parameters are the options of the command.
def benchmark(
    questions: Annotated[Path, typer.Argument(metavar="FILE", help="MuChoMusic's CSV or JSON, or RUListening's JSON.")],
    audio: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the audio, whose files have the questions' ids.")
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="A control: the model gets no audio.")] = False,
    noise: Annotated[bool, typer.Option("--noise", help="A control: noise in place of all audio.")] = False,
    mismatched: Annotated[
        bool, typer.Option("--mismatched", help="A control: with --audio, each question gets another track's.")
    ] = False,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Score the `model_output` of MuChoMusic's JSON; no model is run.")
    ] = False,
    model: Annotated[
        str, typer.Option(metavar="REF|DIR", help="A bundle that answers questions.")
    ] = DEFAULT_QUESTION_BUNDLE,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The order of the options.")] = 0,
    threads: Threads = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Score a bundle on published questions, by probability and by two parsers of written answers.

    Examples:
    - `tmctl benchmark muchomusic.csv --audio ./audio`

    - `tmctl benchmark RUL-MuchoMusic.json --text-only`

    - `tmctl benchmark muchomusic.csv --audio ./audio --mismatched`

    - `tmctl benchmark answered.json --outputs`
    """
    from tinymusician.understand.published import load_published, score_outputs, score_published

    _check_options(audio, text_only, noise, mismatched, outputs)
    layout, loaded = load_published(questions)
    loaded = loaded[:limit]
    if outputs:
        score = score_outputs(layout, loaded)
    else:
        files = {} if audio is None else find_audio(audio, loaded)
        if mismatched:
            files = other_tracks(files, loaded)
        ask = _open_model(model, threads, files, noise, len(loaded))
        score = score_published(layout, loaded, ask, seed)
    emit(score.model_dump(mode="json"), json, _text(score))


def _check_options(audio: Path | None, text_only: bool, noise: bool, mismatched: bool, outputs: bool) -> None:
    """Check that there is one source of audio, or none for outputs.

    Raises:
        RequestError: there is not.
    """
    given = sum((audio is not None, text_only, noise))
    if given != (0 if outputs else 1):
        needed = "with --outputs, none" if outputs else "one"
        raise RequestError(f"benchmark: {needed} of --audio DIR, --text-only and --noise is needed")
    if mismatched and audio is None:
        raise RequestError("--mismatched: needs --audio DIR")


def _open_model(model: str, threads: int, files: Mapping[str, Path], noise: bool, count: int) -> Ask:
    """A function that asks a bundle, with each question's file, with noise, or without audio; it reports progress."""
    from tinymusician.runtime.question_answerer import QuestionAnswerer
    from tinymusician.understand.published import Reply

    answerer = QuestionAnswerer(resolve_bundle(model, print_progress), threads)
    same = _noise(answerer) if noise else answerer.without_audio()
    last: tuple[str, AudioState] | None = None
    done = 0

    def ask(question: PublishedQuestion, options: tuple[str, ...]) -> Reply:
        nonlocal last, done
        if last is None or last[0] != question.id:
            if done * 20 // count < (done + 1) * 20 // count:
                print_progress(f"question {done + 1} of {count}")
            done += 1
            path = files.get(question.id)
            last = question.id, same if path is None else _read(answerer, path)
        shares = [option.probability for option in answerer.choose(last[1], question.text, options).options]
        return Reply(shares.index(max(shares)), answerer.generate(last[1], question.text, options).answer)

    return ask


def _noise(answerer: QuestionAnswerer) -> AudioState:
    """White noise at -26 dB, as long as the model's window."""
    import numpy as np

    samples = round(answerer.shape.window_seconds * answerer.shape.sampling_rate)
    return answerer.read(np.random.default_rng(0).normal(0, _NOISE_LEVEL, samples).astype(np.float32))


def other_tracks(files: Mapping[str, Path], questions: list[PublishedQuestion]) -> dict[str, Path]:
    """For every question the audio of another track: the next one, in a circle.

    Raises:
        DataError: there is one track alone.
    """
    first: dict[str, str] = {}
    for question in questions:
        first.setdefault(question.track, question.id)
    tracks = list(first)
    if len(tracks) < 2:
        raise DataError("--mismatched: all questions are about one track")
    following = dict(zip(tracks, [*tracks[1:], tracks[0]], strict=True))
    return {question.id: files[first[following[question.track]]] for question in questions}


def find_audio(folder: Path, questions: list[PublishedQuestion]) -> dict[str, Path]:
    """The audio file of every question, by its id.

    Raises:
        DataError: the folder does not exist, or a file is missing, too short or too long.
    """
    from tinymusician.runtime.audio_reader import SUFFIXES, audio_seconds
    from tinymusician.runtime.question_checks import check_length

    if not folder.is_dir():
        raise DataError(f"--audio {folder}: no such folder")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    files = {_id_of(path.stem): path for path in paths} | {path.stem: path for path in paths}
    ids = {question.id for question in questions}
    if missing := sorted(ids - files.keys()):
        raise DataError(f"--audio {folder}: {len(missing)} of {len(ids)} files are missing, such as {missing[0]}")
    for name in sorted(ids):
        try:
            check_length(audio_seconds(files[name]))
        except RequestError as error:
            raise DataError(f"{files[name]}: {error}") from None
    return {name: files[name] for name in ids}


def _id_of(stem: str) -> str:
    """The id in MuChoMusic's names of files: `1234.2min` and `[ytid]-[30-40]`."""
    return re.sub(r"^\[(.+)\]-\[\d+-\d+\]$", r"\1", stem.removesuffix(".2min"))


def _read(answerer: QuestionAnswerer, path: Path) -> AudioState:
    from tinymusician.runtime.audio_reader import read_clip

    return answerer.read(read_clip(path, answerer.shape.sampling_rate).wave)


def _text(score: PublishedScore) -> str:
    total = sum(score.letters.values())
    letters = ", ".join(f"{letter} {count / total:.2f}" for letter, count in score.letters.items())
    lines = [f"{score.questions} questions, {score.layout}; chance {score.chance:.3f}"]
    if score.accuracy is not None:
        lines.append(f"by probability: {score.accuracy.as_share()}; letters {letters}")
    if score.voted is not None:
        lines.append(f"by vote over the sets of options: {score.voted.as_share()}, chance {score.voted_chance:.3f}")
    lines.append(f"MuChoMusic's parser: {score.official_accuracy:.3f}, parsed {score.official_parsed:.3f}")
    lines.append(f"strict parser: {score.strict_accuracy:.3f}, parsed {score.strict_parsed:.3f}")
    lines += [f"  {name}: {interval.as_share()}" for name, interval in score.by_category.items()]
    return "\n".join(lines)

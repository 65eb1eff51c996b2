"""`tmctl benchmark`: score a bundle that answers questions on a published file of questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.engine_options import Threads
from jobs.cli.output import emit, print_progress
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.errors import DataError, RequestError
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE

if TYPE_CHECKING:
    from tinymusician.runtime.question_answerer import AudioState, QuestionAnswerer
    from tinymusician.understand.published import Ask, PublishedQuestion, PublishedScore


def benchmark(
    questions: Annotated[Path, typer.Argument(metavar="FILE", help="MuChoMusic's CSV or JSON, or RUListening's JSON.")],
    audio: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the audio, whose files have the questions' ids.")
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="A baseline: the model gets no audio.")] = False,
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

    - `tmctl benchmark answered.json --outputs`
    """
    from tinymusician.understand.published import load_published, score_outputs, score_published

    layout, loaded = load_published(questions)
    loaded = loaded[:limit]
    if outputs:
        score = score_outputs(layout, loaded)
    else:
        ask = _open_model(model, threads, audio, text_only, loaded)
        score = score_published(layout, loaded, ask, seed)
    emit(score.model_dump(mode="json"), json, _text(score))


def _open_model(
    model: str, threads: int, audio: Path | None, text_only: bool, questions: list[PublishedQuestion]
) -> Ask:
    """A function that asks a bundle, with each question's audio or without any."""
    from tinymusician.runtime.question_answerer import QuestionAnswerer
    from tinymusician.understand.published import Reply

    if (audio is None) != text_only:
        raise RequestError("benchmark: give either --audio DIR or --text-only")
    files = {} if audio is None else find_audio(audio, questions)
    answerer = QuestionAnswerer(resolve_bundle(model, print_progress), threads)
    last: tuple[str, AudioState] | None = None

    def ask(question: PublishedQuestion, options: tuple[str, ...]) -> Reply:
        nonlocal last
        if last is None or last[0] != question.id:
            path = files.get(question.id)
            last = question.id, answerer.without_audio() if path is None else _read(answerer, path)
        shares = [option.probability for option in answerer.choose(last[1], question.text, options).options]
        return Reply(shares.index(max(shares)), answerer.generate(last[1], question.text, options).answer)

    return ask


def find_audio(folder: Path, questions: list[PublishedQuestion]) -> dict[str, Path]:
    """The audio file of every question, by its id.

    Raises:
        DataError: the folder does not exist, or a file is missing.
    """
    from tinymusician.runtime.audio_reader import SUFFIXES

    if not folder.is_dir():
        raise DataError(f"--audio {folder}: no such folder")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    files = {_id_of(path.stem): path for path in paths} | {path.stem: path for path in paths}
    ids = {question.id for question in questions}
    if missing := sorted(ids - files.keys()):
        raise DataError(f"--audio {folder}: {len(missing)} of {len(ids)} files are missing, such as {missing[0]}")
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

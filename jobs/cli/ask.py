"""`tmctl ask`: answer questions about audio with a bundle on this machine, with ONNX Runtime and NumPy only."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.engine_options import Threads
from jobs.cli.output import emit, print_progress, warn
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.errors import RequestError
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE
from tinymusician.runtime.prompts import CANNOT_TELL, MAX_SECONDS, MIN_SECONDS

if TYPE_CHECKING:
    from tinymusician.runtime.question_answerer import Answer, AudioInfo

_BAR = 24


# Long: its parameters are the options of the command.
def ask(
    audio: Annotated[Path, typer.Option(metavar="FILE", help="The audio: any format, rate and number of channels.")],
    question: Annotated[
        str | None,
        typer.Argument(help="A question, such as 'Which instrument plays?'; none: all attributes of the model."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="TEXT", help="A possible answer; can be repeated, 2 to 50 times."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="REF|DIR",
            help="A bundle that answers questions: NAME[@sha256:DIGEST] in the store, or a folder.",
        ),
    ] = DEFAULT_QUESTION_BUNDLE,
    start: Annotated[float, typer.Option(min=0, max=1e6, metavar="SECONDS", help="Where to begin in the file.")] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=MIN_SECONDS,
            max=MAX_SECONDS,
            metavar="SECONDS",
            help="How much to judge.",
            show_default="all of it, up to 600",
        ),
    ] = None,
    threads: Threads = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer a question about audio, with the probability of every option.

    `tmctl submit understand band-mu` trains a model that knows the house band's music: single melodies on six
    instruments. Audio longer than its training clips is judged in windows, whose log-probabilities are averaged.

    Examples:
    - `tmctl ask --audio reel.wav`

    - `tmctl ask "Which instrument plays?" --audio reel.ogg`

    - `tmctl ask "Which instrument plays?" --audio reel.ogg --option flute --option violin --json`
    """
    from tinymusician.runtime.audio_reader import read_clip
    from tinymusician.runtime.bundle import manifest_digest
    from tinymusician.runtime.question_answerer import QuestionAnswerer
    from tinymusician.runtime.question_checks import check_length, check_question

    if question is None and options:
        raise RequestError("--option: needs a question")
    if question is not None:
        check_question(question, options or [])
    folder = resolve_bundle(model, print_progress)
    answerer = QuestionAnswerer(folder, threads)
    longest = MAX_SECONDS + 1 if seconds is None else seconds
    clip = read_clip(audio, answerer.shape.sampling_rate, start, longest)
    if seconds is None:
        check_length(round(clip.file_seconds - start, 3))
    if clip.changed:
        warn(f"{audio}: {', '.join(clip.changed)}")
    state = answerer.read(clip.wave)
    answers = answerer.ask_all(state) if question is None else [answerer.ask(state, question, options or [])]
    facts = {
        "model": answerer.manifest.name,
        "digest": manifest_digest(folder),
        **asdict(state.info),
        "truncated": clip.missing_seconds > 0,
        "answers": [asdict(one) for one in answers],
    }
    emit(facts, json, _text(answers, state.info))


def _text(answers: list[Answer], info: AudioInfo) -> str:
    about = f"{info.audio_seconds:.1f} s of audio in {info.windows} window{'s' * (info.windows > 1)}"
    if len(answers) > 1:
        width = max(len(answer.attribute or "") for answer in answers)
        lines = [f"{answer.attribute or '':<{width}}  {answer.answer}  {answer.probability:.2f}" for answer in answers]
        return "\n".join([*lines, about])
    (answer,) = answers
    lines = [f"{answer.answer}  {answer.probability:.2f}"]
    width = max((len(option.text) for option in answer.options), default=0)
    if answer.options and answer.answer == CANNOT_TELL:
        lines.append("  if it is one of them all the same:")
    for option in sorted(answer.options, key=lambda option: -option.probability):
        bar = "█" * round(_BAR * option.probability * (1 - answer.cannot_tell))
        lines.append(f"  {option.text:<{width}}  {option.probability:.2f}  {bar}".rstrip())
    return "\n".join([*lines, f"  cannot tell: {answer.cannot_tell:.2f}", about])

"""`tmctl generate`: generate audio with a bundle on this machine, with ONNX Runtime and NumPy only."""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.clip_ranker import ClipRanker
from jobs.cli.engine_options import Threads
from jobs.cli.output import emit, print_progress, warn
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.errors import DataError, RequestError
from tinymusician.runtime.audio_lm_bundle import DEFAULT_QUESTION_BUNDLE
from tinymusician.runtime.bundle import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from tinymusician.json_types import JsonObject
    from tinymusician.runtime.audio import Samples
    from tinymusician.runtime.generator import GenerationRequest, MusicGenerator, PromptSection

ProgressCallback = Callable[[int, int], None]
_RANDOM_SEEDS = 2**31


# Long: its parameters are the options of the command.
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="A description of the music, such as 'a slow waltz for flute'; none: unconditional."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="REF|DIR", help="A bundle: the packaged one, NAME[@sha256:DIGEST] in the store, or a folder."
        ),
    ] = DEFAULT_BUNDLE,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The file to write: .wav, .flac, .ogg, .opus or .mp3; - is standard output."
        ),
    ] = Path("out.wav"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    count: Annotated[int, typer.Option(min=1, help="Clips per prompt, each with a seed of its own.")] = 1,
    best_of: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Generate N clips for each that is written, and write the one that keeps best what its prompt names.",
            show_default="off",
        ),
    ] = 1,
    judge: Annotated[
        str, typer.Option(metavar="REF|DIR", help="The bundle that answers questions, by which --best-of ranks.")
    ] = DEFAULT_QUESTION_BUNDLE,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file with a prompt per line, generated in one batch.")
    ] = None,
    sections: Annotated[
        list[str] | None,
        typer.Option("--section", metavar="SECOND:PROMPT", help="Another prompt from a second on; can be repeated."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="The length in seconds.", show_default="the bundle's")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="The same seed gives the same audio on the same machine.", show_default="random"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How closely to follow the prompt; a value other than 1 may take two passes per step.",
            show_default="the bundle's",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Below 1 less random, above 1 more; 0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many most likely codes; 0 is all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most likely codes with this total probability.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="What the music should not sound like.")
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option("--continue", metavar="FILE", help="Continue this audio; its length counts among the seconds."),
    ] = None,
    windows: Annotated[
        bool,
        typer.Option(
            help="Generate more than the model's training length in windows, each of which continues the last."
        ),
    ] = True,
    normalize: Annotated[
        float | None,
        typer.Option(metavar="LUFS", help="Normalize the integrated loudness, e.g. to -14.", show_default="off"),
    ] = None,
    fade_out: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Fade the end out.", show_default="off")
    ] = 0,
    threads: Threads = 0,
    provider: Annotated[str, typer.Option(help="ONNX Runtime's execution provider.")] = "CPUExecutionProvider",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate audio for a prompt with a bundle, and write an audio file.

    Several clips are numbered: reel-1.wav, reel-2.wav. Files contain prompt and seed in their tags. Audio that would
    clip is reduced to a peak of -1 dB of full scale.

    Examples:
    - `tmctl generate "a fast fiddle reel" -o reel.wav`

    - `tmctl generate "a slow flute waltz" --model ./bundle --seconds 4 --seed 7 --guidance 2 -o waltz.flac`

    - `tmctl generate "a slow march" --section '8:a fast march' --seconds 16 -o march.ogg`

    - `tmctl generate --prompts prompts.txt --count 3 -o clips.wav`

    - `tmctl generate "a slow waltz for flute in D major" --best-of 4 -o waltz.wav`
    """
    from tinymusician.artifacts.output_file import STDOUT, check_writable, is_special
    from tinymusician.runtime.audio_output import audio_format
    from tinymusician.runtime.audio_reader import read_clip
    from tinymusician.runtime.generator import GenerationRequest, load_generator
    from tinymusician.runtime.loudness import check_loudness

    began, suffix = time.monotonic(), audio_format(output)
    texts = [prompt] if prompts is None else _read_prompts(prompts, prompt)
    paths = numbered(output, count * len(texts))
    if output == STDOUT and (len(paths) > 1 or json):
        raise RequestError("--output -: standard output holds one clip, and no JSON")
    if len(paths) > 1 and is_special(output):
        raise RequestError(f"--output {output}: a device or pipe holds one clip")
    for path in paths:
        check_writable(path, force)
    if best_of > 1 and sections:
        raise RequestError("--best-of: ranks a clip by one prompt, and --section gives it several")
    if normalize is not None:
        check_loudness(normalize, seconds)
    ranker = None if best_of == 1 else ClipRanker(judge, texts, best_of, threads)
    generator = load_generator(resolve_bundle(model, print_progress), threads, provider)
    rate, first = generator.codec.shape.sampling_rate, secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed
    one = GenerationRequest(None, seconds, first, guidance, temperature, top_k, top_p, negative_prompt, windows=windows)
    if clip is not None:
        loaded_clip = read_clip(clip, rate)
        if loaded_clip.changed:
            warn(f"{clip}: {', '.join(loaded_clip.changed)}")
        one = replace(one, clip=loaded_clip.wave)
    one = replace(one, sections=_parse_sections(sections or []))
    requests = [replace(one, prompt=texts[n // (count * best_of)], seed=first + n) for n in range(len(paths) * best_of)]
    words = {text: _unknown_words(generator, replace(one, prompt=text)) for text in dict.fromkeys(texts)}
    loaded = time.monotonic()
    with progress(generator.codec.shape.frame_rate) as on_progress:
        waves = generator.generate_batch(requests, on_progress)
    took = time.monotonic() - loaded
    adherence: Sequence[tuple[float, ...] | None] = [None] * len(paths)
    if ranker is not None:
        requests, waves, adherence = ranker.best(requests, waves, rate)
    clips = [
        {
            **_write(path, suffix, wave, request, generator, normalize, fade_out),
            "unknown_words": words[request.prompt],
            "adherence": scores,
        }
        for path, wave, request, scores in zip(paths, waves, requests, adherence, strict=True)
    ]
    _report(clips, generator.manifest.name, loaded - began, took, json, output == STDOUT)


def numbered(path: Path, count: int) -> list[Path]:
    """The path itself for one clip, otherwise `STEM-1.SUFFIX`, `STEM-2.SUFFIX` and so on."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def _read_prompts(path: Path, prompt: str | None) -> list[str | None]:
    """The lines of a file that are not blank.

    Raises:
        DataError: the file cannot be read as text, or has no prompt.
        RequestError: a prompt is given as well.
    """
    if prompt is not None:
        raise RequestError(f"--prompts {path}: leave the prompt {prompt!r} out, or put it into the file")
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {path}: cannot be read ({error})") from None
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise DataError(f"--prompts {path}: has no prompt; one per line is needed")
    return list(texts)


def _parse_sections(values: Sequence[str]) -> tuple[PromptSection, ...]:
    """The sections of `SECOND:PROMPT`.

    Raises:
        RequestError: a value has another form.
    """
    from tinymusician.runtime.generator import PromptSection

    sections = []
    for value in values:
        start, _, prompt = value.partition(":")
        try:
            second = float(start)
        except ValueError:
            second = math.nan
        if not math.isfinite(second):
            raise RequestError(f"--section {value!r}: SECOND:PROMPT is needed, such as '8:a fast march'")
        sections.append(PromptSection(second, prompt.strip()))
    return tuple(sections)


def _unknown_words(generator: MusicGenerator, request: GenerationRequest) -> list[str]:
    """Warn of words that the model does not know; returns them."""
    words = generator.unknown_words(request)
    if words:
        warn(f"not known to this model: {', '.join(words)}")
    return words


def _write(
    path: Path,
    suffix: str,
    wave: Samples,
    request: GenerationRequest,
    generator: MusicGenerator,
    normalize: float | None,
    fade_out: float,
) -> JsonObject:
    """Finish a clip, and write it; returns its description."""
    from tinymusician.artifacts.output_file import write_output
    from tinymusician.runtime.audio import encode
    from tinymusician.runtime.loudness import fade_out_samples, normalize_peak, normalized

    rate = generator.codec.shape.sampling_rate
    wave = wave if normalize is None else normalized(wave, rate, normalize)
    wave, peak = normalize_peak(fade_out_samples(wave, rate, fade_out))
    comment = f"seed={request.seed} model={generator.manifest.name}"
    write_output(path, encode(wave, rate, suffix, request.prompt or "", comment))
    if peak is not None:
        warn(f"{path}: its peak of {peak:+.1f} dB of full scale was reduced to -1 dB")
    return {
        "output": str(path),
        "prompt": request.prompt,
        "seed": request.seed,
        "seconds": len(wave) / rate,
        "peak_reduced_db": peak,
    }


def _report(
    clips: list[JsonObject], model: str, load_seconds: float, took: float, as_json: bool, to_stderr: bool
) -> None:
    from tinymusician.runtime.memory import peak_memory

    factor = took / sum(clip["seconds"] for clip in clips)
    facts = {
        "model": model,
        "load_seconds": round(load_seconds, 3),
        "generate_seconds": round(took, 3),
        "real_time_factor": round(factor, 3),
        "peak_memory_bytes": peak_memory(),
        "clips": clips,
    }
    lines = [f"{clip['output']}: {clip['seconds']:g} s, seed {clip['seed']}{_ranked(clip)}" for clip in clips]
    lines += [f"generated in {took:.1f} s (real-time factor {factor:.2f})"]
    if to_stderr:
        print("\n".join(lines), file=sys.stderr)
    else:
        emit(facts, as_json, "\n".join(lines))


def _ranked(clip: JsonObject) -> str:
    """How far a clip keeps what its prompt names, and the clips that it was chosen from."""
    if (scores := clip["adherence"]) is None:
        return ""
    best, *others = sorted(scores, reverse=True)
    return f", adherence {best:.2f} (the others {', '.join(f'{one:.2f}' for one in others)})"


@contextmanager
def progress(frame_rate: float) -> Iterator[ProgressCallback]:
    """A bar with the real-time factor on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar, began = bars.add_task("generating", total=None), time.monotonic()

        def on_progress(done: int, frames: int) -> None:
            factor = f"{(time.monotonic() - began) * frame_rate / done:.2f}" if done else "…"
            bars.update(bar, total=frames, completed=done, description=f"generating, real-time factor {factor}")

        yield on_progress

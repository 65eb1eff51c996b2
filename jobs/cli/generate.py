"""`tmctl generate`: generate audio with a bundle on this machine, with ONNX Runtime and NumPy only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.output import emit

ProgressCallback = Callable[[int, int], None]


# Long: its parameters are the options of the command.
def generate(
    prompt: Annotated[str, typer.Argument(help="A description of the music, such as 'a slow waltz for accordion'.")],
    model: Annotated[
        str, typer.Option(metavar="REF|DIR", help="A bundle: NAME[@sha256:DIGEST] in the store, or a folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The WAV file to write.")] = Path("out.wav"),
    seconds: Annotated[float | None, typer.Option(help="The length in seconds.", show_default="the bundle's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same audio on the same machine.")] = 0,
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
        typer.Option("--continue", metavar="WAV", help="Continue this clip; its length counts among the seconds."),
    ] = None,
    windows: Annotated[
        bool,
        typer.Option(
            help="Generate more than the model's training length in windows, each of which continues the last."
        ),
    ] = True,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; with 0, ONNX Runtime decides.")] = 0,
    provider: Annotated[str, typer.Option(help="ONNX Runtime's execution provider.")] = "CPUExecutionProvider",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate audio for a prompt with a bundle, and write a WAV file.

    Examples:
    - `tmctl generate "a fast fiddle reel" --model band-bundle -o reel.wav`

    - `tmctl generate "a slow flute waltz" --model ./bundle --seconds 4 --seed 7 --guidance 2`
    """
    from tinymusician.bundle_refs import resolve_bundle
    from tinymusician.errors import DataError
    from tinymusician.runtime.audio import read_wave, write_wave
    from tinymusician.runtime.generator import GenerationRequest, load_generator
    from tinymusician.runtime.memory import peak_memory

    began = time.monotonic()
    if not output.absolute().parent.is_dir():
        raise DataError(f"--output {output}: no such folder as {output.absolute().parent}")
    generator = load_generator(resolve_bundle(model, lambda path: print(path, file=sys.stderr)), threads, provider)
    loaded = time.monotonic()
    rate = generator.codec.shape.sampling_rate
    prefix = None if clip is None else read_wave(clip, rate)
    request = GenerationRequest(
        prompt, seconds, seed, guidance, temperature, top_k, top_p, negative_prompt, prefix, windows
    )
    with progress(generator.codec.shape.frame_rate) as on_progress:
        samples = generator.generate(request, on_progress)
    took, length = time.monotonic() - loaded, len(samples) / rate
    write_wave(output, samples, rate)
    facts = {
        "output": str(output),
        "model": generator.manifest.name,
        "seconds": length,
        "load_seconds": round(loaded - began, 3),
        "generate_seconds": round(took, 3),
        "real_time_factor": round(took / length, 3),
        "seed": seed,
        "peak_memory_bytes": peak_memory(),
    }
    emit(facts, json, f"{output}: {length:g} s in {took:.1f} s (real-time factor {took / length:.2f})")


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
        bar, began = bars.add_task("playing", total=None), time.monotonic()

        def on_progress(done: int, frames: int) -> None:
            factor = f"{(time.monotonic() - began) * frame_rate / done:.2f}" if done else "…"
            bars.update(bar, total=frames, completed=done, description=f"playing, real-time factor {factor}")

        yield on_progress

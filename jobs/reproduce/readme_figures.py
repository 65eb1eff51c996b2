"""Measures the table of README.md, and makes its picture and sounds: teacher, student and the student's bundle.

Usage: python -m jobs.reproduce.readme_figures [--student MODEL] [--clips N]

Distils the student of the recipe `band`, unless another is given, quantizes it, and evaluates the three models as
ordinary runs; a run that has succeeded is reused. Then it replaces the lines of README.md between the two markers, and
the files of docs/readme/. The sounds are those of the first evaluated prompt: nothing is selected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.reproduce.reproduction import Reproduction
from tinymusician.artifacts.atomic import atomic_write
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import DataError, TinyMusicianError
from tinymusician.evaluate.audio import decode_flac, encode_flac
from tinymusician.evaluate.report_tables import format_interval
from tinymusician.evaluate.results import EvaluationResult, InferenceCost, ModelResult
from tinymusician.evaluate.spectrograms import plot_spectrograms
from tinymusician.markdown import markdown_table
from tinymusician.runtime.audio_reader import Wave

ROOT = Path(__file__).parents[2]
FOLDER = "docs/readme"
BEGIN, END = "<!-- make readme-figures: begin -->", "<!-- make readme-figures: end -->"
AUDIO_SECONDS, MAX_AUDIO_BYTES = 4.0, 300_000
_COLUMNS = ("", "MB", "real-time factor", "KL to the teacher, nats per code", "CLAP score")


def figures_table(models: Sequence[ModelResult]) -> str:
    """Size, speed, closeness to the teacher and CLAP score of each model."""
    rows = [
        (
            model.label,
            f"{model.size / 1e6:.1f}",
            _speed(model.cost),
            "" if number == 0 or model.agreement is None else format_interval(model.agreement.forward),
            format_interval(model.distribution.clap_score),
        )
        for number, model in enumerate(models)
    ]
    return markdown_table(_COLUMNS, rows)


def _speed(cost: InferenceCost | None) -> str:
    return "" if cost is None else f"{cost.real_time_factor:.2f} ({cost.lowest:.2f} to {cost.highest:.2f})"


def section(result: EvaluationResult) -> str:
    """The lines of README.md: the table, the conditions of its numbers, the picture, the sounds."""
    conditions, prompt = result.provenance, result.samples[0].prompt
    versions = ", ".join(f"{name} {conditions.versions[name]}" for name in ("torch", "onnxruntime"))
    sounds = ", ".join(f"[{model.label}]({FOLDER}/{number}.flac)" for number, model in enumerate(result.models))
    return f"""\
{figures_table(result.models)}

{conditions.clips} test captions, {conditions.seconds:g} s each, 95 % bootstrap intervals, seed {conditions.seed}. \
Real-time factor: seconds per second of audio, one clip at a
time, median (minimum to maximum). {conditions.machine}; {versions}. `make readme-figures`.

![Spectrograms of the three models for one prompt]({FOLDER}/spectrograms.png)

Listen to "{prompt}": {sounds}.
"""


def write_audio(run: RunStore, result: EvaluationResult, folder: Path) -> None:
    """Write the first seconds of the clips of the first prompt, and the picture of their spectrograms.

    Raises:
        DataError: the clips together are larger than MAX_AUDIO_BYTES.
    """
    files = {clip.model_id: clip.file for clip in result.samples[0].clips}
    clips = [(model.label, *_beginning(run.audio(files[model.model_id]))) for model in result.models]
    flacs = [encode_flac(wave, rate) for _, wave, rate in clips]
    size = sum(len(flac) for flac in flacs)
    if size > MAX_AUDIO_BYTES:
        raise DataError(f"the clips have {size} bytes; at most {MAX_AUDIO_BYTES} belong into the repository")
    folder.mkdir(parents=True, exist_ok=True)
    for number, flac in enumerate(flacs):
        (folder / f"{number}.flac").write_bytes(flac)
    (folder / "spectrograms.png").write_bytes(plot_spectrograms(clips))


def _beginning(flac: bytes) -> tuple[Wave, int]:
    wave, rate = decode_flac(flac)
    return wave[: round(AUDIO_SECONDS * rate)], rate


def replace_section(readme: str, content: str) -> str:
    """README.md with other lines between its markers.

    Raises:
        DataError: a marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"README.md: the markers {BEGIN} and {END} are needed")
    return f"{before}{BEGIN}\n{content}{END}{after}"


def main() -> None:
    """Run the jobs, then write README.md and docs/readme/."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--student", help="a packaged model, artifact or folder; if not given, one is distilled")
    arguments.add_argument("--clips", type=int, default=150, help="test captions; 150 if not given")
    options = arguments.parse_args()
    jobs = Reproduction("readme", "band", workers=1)
    try:
        student = options.student or jobs.distill("student")
        bundle = jobs.quantize("bundle", student, "adaptive")
        run, result = jobs.evaluate(
            "figures", f"evaluate.clips={options.clips}", teacher="teacher", student=student, bundle=bundle
        )
        write_audio(run, result, ROOT / FOLDER)
        readme = ROOT / "README.md"
        with atomic_write(readme) as draft:
            draft.write_text(replace_section(readme.read_text("utf-8"), section(result)), "utf-8")
    except TinyMusicianError as error:
        sys.exit(f"error: {error}")
    print(section(result))


if __name__ == "__main__":
    main()

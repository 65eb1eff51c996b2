"""`make demo`: distils the house band's student through the full path, and generates audio with teacher and students.

Usage: python -m jobs.examples.demo [FOLDER]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tinymusician.json_types import JsonObject
from tinymusician.recipe import TeacherConfig

PROMPTS = (
    "a slow church organ waltz in D minor",
    "a fast and cheerful reel played on the fiddle",
    "a moderate jig for flute in G major",
    "a fast banjo hornpipe",
)
SECONDS = 5.0

if TYPE_CHECKING:
    from tinymusician.models.protocols import Musicgen, Tokenizer


def main() -> None:
    """Submit the job, then write WAVs of teacher, untrained and distilled student for the same prompts."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    began = time.monotonic()
    run = submit()
    render_all(run["artifact"], folder)
    figures = run["metrics"]
    print(
        f"\nheld-out KL to the teacher      {figures['kl_initial']:.3f} → {figures['kl_final']:.3f} nats per code"
        f"\ncross-entropy of its next codes "
        f"{figures['cross_entropy_initial']:.3f} → {figures['cross_entropy_final']:.3f} "
        f"nats per code under the teacher, in held-out context"
        f"\nplaying freely                  cross-entropy {figures['sample_cross_entropy_untrained']:.3f} → "
        f"{figures['sample_cross_entropy_student']:.3f} (teacher {figures['sample_cross_entropy_teacher']:.3f}), "
        f"code entropy {figures['sample_code_entropy_untrained']:.2f} → {figures['sample_code_entropy_student']:.2f} "
        f"(teacher {figures['sample_code_entropy_teacher']:.2f}) nats per code"
        f"\nsound                           {folder}/*.wav: teacher, untrained and distilled, for the same prompts"
        f"\nrun                             {run['id']} (tmctl status, tmctl logs)"
        f"\nartifact                        {run['artifact']} (tmctl artifacts show band)"
        f"\ntime                            {(time.monotonic() - began) / 60:.1f} minutes"
    )


def submit() -> JsonObject:
    """Run `tmctl submit distill band` as a user would; returns the finished run."""
    tmctl = str(Path(sys.executable).with_name("tmctl"))
    name = f"band-demo-{time.strftime('%Y%m%d-%H%M%S')}"
    ended = subprocess.run([tmctl, "submit", "distill", "band", "--name", name], check=False)
    if ended.returncode != 0:
        sys.exit(ended.returncode)
    status = subprocess.run([tmctl, "status", name, "--json"], check=True, capture_output=True, text=True)
    run: JsonObject = json.loads(status.stdout)
    return run


def render_all(reference: str, folder: Path) -> None:
    """Generate every prompt with every model, with the same seed."""
    from jobs.distill.models import new_student
    from tinymusician.artifacts.manifest import fetch, find
    from tinymusician.artifacts.open import open_store
    from tinymusician.models.musicgen import load_musicgen, load_tokenizer
    from tinymusician.recipe import parse_recipe

    store = open_store()
    manifest = find(store, reference)
    recipe = parse_recipe(manifest.recipe, "band")
    teacher, tokenizer = load_musicgen(recipe.teacher.model), load_tokenizer(recipe.teacher.model)
    with tempfile.TemporaryDirectory() as scratch:
        fetch(store, manifest, Path(scratch))
        distilled = load_musicgen(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("teacher", teacher), ("untrained", new_student(recipe, teacher)), ("distilled", distilled)):
        render(model, tokenizer, recipe.teacher, folder, name)


def render(model: Musicgen, tokenizer: Tokenizer, config: TeacherConfig, folder: Path, name: str) -> None:
    """Sample the prompts with the teacher's settings, and write `FOLDER/NUMBER-NAME.wav`."""
    import torch

    from tinymusician.models.musicgen import encode_text
    from tinymusician.models.sampling import decode_audio, sample_codes
    from tinymusician.runtime.audio_output import write_wave

    text = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    codec = model.config.audio_encoder
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
        generator = torch.Generator().manual_seed(0)
        frames = round(SECONDS * codec.frame_rate)
        codes = sample_codes(
            model, condition, frames, generator, config.guidance_scale, config.top_k, config.temperature
        )
    for number, samples in enumerate(decode_audio(model, codes), 1):
        write_wave(folder / f"{number}-{name}.wav", samples.numpy(), codec.sampling_rate)


if __name__ == "__main__":
    main()

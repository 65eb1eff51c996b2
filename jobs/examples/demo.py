"""`make demo`: the whole chain on the house band, with the commands that a user would type, and one page about it.

Usage: python -m jobs.examples.demo [FOLDER]

Distils a student, compresses it into a bundle, signs and publishes the bundle, pulls it into a folder as a device
would, and plays it. FOLDER/index.html has the results. Runs and artifacts are in the user's store.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jobs.examples.demo_page import Generated, demo_page, read_clips
from tinymusician.artifacts.manifest import Manifest, fetch, find
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.runs import RunStore
from tinymusician.json_types import JsonObject
from tinymusician.recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from tinymusician.models.protocols import Musicgen, Tokenizer

PROMPTS = (
    "a slow church organ waltz in D minor",
    "a fast and cheerful reel played on the fiddle",
    "a moderate jig for flute in G major",
    "a fast banjo hornpipe",
)
SECONDS = 5.0
STEPS = 6
TMCTL = str(Path(sys.executable).with_name("tmctl"))


class Chain(NamedTuple):
    """What the commands produced: the runs, the student, and the folder on the device."""

    distillation: RunStore
    student: Manifest
    bundle: Manifest
    device: Path


def main() -> None:
    """Run the chain, play everything, and write the page."""
    folder, began = Path(sys.argv[1] if len(sys.argv) > 1 else "demo"), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    chain = _run_chain(folder)
    _say(6, "play the prompts with every model")
    generated = [*_generate_with_torch(chain.student, folder), _generate_with_bundle(chain, folder)]
    minutes = (time.monotonic() - began) / 60
    page = folder / "index.html"
    page.write_text(demo_page(chain.distillation, chain.device, PROMPTS, generated, minutes), "utf-8")
    print(f"\n{minutes:.1f} minutes; listen and look: {page.absolute().as_uri()}")


def _run_chain(folder: Path) -> Chain:
    """Distil, quantize, sign, publish and pull, each by the command line."""
    store, device = open_store(), folder / "device"
    name = f"band-demo-{time.strftime('%Y%m%d-%H%M%S')}"
    _say(1, "distil a student from its teacher")
    _tmctl("submit", "distill", "band", "--name", name)
    student = find(store, str(RunStore(store, name).result().artifact))
    _say(2, "compress it into a bundle")
    _tmctl("submit", "quantize", "band", "--model", student.reference, "--name", f"{name}-quantize")
    bundle = find(store, str(RunStore(store, f"{name}-quantize").result().artifact))
    _say(3, "create signing keys, unless the store has some")
    if _root_key() is None:
        _tmctl("signing-keys", "create")
    _say(4, "sign the bundle and publish it as candidate")
    _tmctl("artifacts", "publish", bundle.reference)
    _say(5, "pull it, as a device would")
    _tmctl("pull", f"{bundle.name}@candidate", "--to", str(device), "--root-key", str(_root_key()))
    return Chain(RunStore(store, name), student, bundle, device)


def _say(number: int, what: str) -> None:
    """Announce a step."""
    print(f"\n[{number}/{STEPS}] {what}", flush=True)


def _tmctl(*words: str) -> None:
    """Print and run a command; its failure ends the demo."""
    print(f"$ tmctl {' '.join(words)}", flush=True)
    code = subprocess.run([TMCTL, *words], check=False).returncode
    if code != 0:
        sys.exit(code)


def _root_key() -> str | None:
    """The public root key of the store's releases; None if the store has none."""
    ended = subprocess.run([TMCTL, "signing-keys", "show", "--json"], capture_output=True, text=True, check=False)
    return str(json.loads(ended.stdout)["root"][0]) if ended.returncode == 0 else None


def _generate_with_torch(student: Manifest, folder: Path) -> list[Generated]:
    """Generate every prompt with teacher, untrained and distilled student, with the same seed."""
    from jobs.distill.models import new_student
    from tinymusician.models.musicgen import load_musicgen, load_tokenizer

    recipe = parse_recipe(student.recipe, student.name)
    teacher, tokenizer = load_musicgen(recipe.teacher.model), load_tokenizer(recipe.teacher.model)
    with tempfile.TemporaryDirectory() as scratch:
        fetch(open_store(), student, Path(scratch))
        distilled = load_musicgen(scratch)
    models = {"teacher": teacher, "untrained student": new_student(recipe, teacher), "student": distilled}
    return [_generate(model, tokenizer, recipe, folder, name) for name, model in models.items()]


def _generate(model: Musicgen, tokenizer: Tokenizer, recipe: Recipe, folder: Path, name: str) -> Generated:
    """Sample the prompts with the teacher's settings in one batch, and write `FOLDER/NAME-NUMBER.wav`."""
    import torch

    from tinymusician.models.musicgen import encode_text
    from tinymusician.models.sampling import decode_audio, sample_codes
    from tinymusician.runtime.audio_output import write_wave

    text, began = tokenizer(list(PROMPTS), padding=True, return_tensors="pt"), time.monotonic()
    codec, teacher = model.config.audio_encoder, recipe.teacher
    sampling = (teacher.guidance_scale, teacher.top_k, teacher.temperature)
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
        generator = torch.Generator().manual_seed(0)
        codes = sample_codes(model, condition, round(SECONDS * codec.frame_rate), generator, *sampling)
        waves = decode_audio(model, codes)
    seconds = time.monotonic() - began
    files = [folder / f"{name.replace(' ', '-')}-{number}.wav" for number in range(1, len(PROMPTS) + 1)]
    for file, wave in zip(files, waves, strict=True):
        write_wave(file, wave.numpy(), codec.sampling_rate)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return Generated(name, read_clips(files), size, seconds / (len(PROMPTS) * SECONDS))


def _generate_with_bundle(chain: Chain, folder: Path) -> Generated:
    """Generate every prompt with the pulled bundle, by `tmctl generate`."""
    prompts, output = folder / "prompts.txt", folder / "bundle.wav"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS), "utf-8")
    words = [
        "generate",
        "--model",
        str(chain.device),
        "--prompts",
        str(prompts),
        "--seconds",
        f"{SECONDS:g}",
        "--seed",
        "0",
    ]
    words += ["--output", str(output), "--force"]
    print(f"$ tmctl {' '.join(words)}", flush=True)
    ended = subprocess.run([TMCTL, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(ended.returncode)
    facts: JsonObject = json.loads(ended.stdout)
    files = [Path(clip["output"]) for clip in facts["clips"]]
    return Generated("bundle", read_clips(files), chain.bundle.size, facts["real_time_factor"])


if __name__ == "__main__":
    main()

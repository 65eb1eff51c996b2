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
from jobs.sign_result import made_by
from tinymusician.artifacts.keys import keys_folder, load_key
from tinymusician.artifacts.manifest import Manifest, fetch, find
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import KeyFileError, TinyMusicianError
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


class Step(NamedTuple):
    """A step of the demo, and its share of the time on two cores; only the remaining time depends on the shares."""

    text: str
    share: float


STEPS = (
    Step("create signing keys, unless the store has some", 0.002),
    Step("distil a student from its teacher", 0.88),
    Step("compress it into a bundle", 0.07),
    Step("sign the bundle and publish it as candidate", 0.002),
    Step("pull it, as a device would", 0.002),
    Step("play the prompts with every model", 0.044),
)
_SHORTER = ("--set", "training.steps=100", "--set", "training.validate_every=50")
"""The recipe trains 120 steps; with 100, the demo takes less than six minutes on two cores."""
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
    announce = Announcer(began)
    chain = _run_chain(folder, announce)
    announce()
    generated = [*_generate_with_torch(chain.student, folder), _generate_with_bundle(chain, folder)]
    minutes = (time.monotonic() - began) / 60
    page = folder / "index.html"
    page.write_text(demo_page(chain.distillation, chain.device, PROMPTS, generated, minutes), "utf-8")
    print(f"\n{minutes:.1f} minutes; listen and look: {page.absolute().as_uri()}")


class Announcer:
    """Announces each step, and from the second one on how long the rest will take at the speed so far."""

    def __init__(self, began: float) -> None:
        self._began, self._step = began, 0

    def __call__(self) -> None:
        """Announce the next step."""
        done = sum(step.share for step in STEPS[: self._step])
        left = (time.monotonic() - self._began) * (1 - done) / done if self._step > 1 else 0
        remaining = f" (about {max(1, round(left / 60))} min left in all)" if left else ""
        print(f"\n[{self._step + 1}/{len(STEPS)}] {STEPS[self._step].text}{remaining}", flush=True)
        self._step += 1


def _run_chain(folder: Path, announce: Announcer) -> Chain:
    """Distil, quantize, sign, publish and pull, each by the command line; the device is a new folder for each run."""
    store, name = open_store(), f"band-demo-{time.strftime('%Y%m%d-%H%M%S')}"
    device = folder / name
    announce()
    root_key = _root_key(ReleaseRegistry(store, keys_folder()))
    announce()
    _tmctl("submit", "distill", "band", "--name", name, *_SHORTER)
    student = find(store, made_by(RunStore(store, name)))
    announce()
    _tmctl("submit", "quantize", "band", "--model", student.reference, "--name", f"{name}-quantize")
    bundle = find(store, made_by(RunStore(store, f"{name}-quantize")))
    announce()
    _tmctl("artifacts", "publish", bundle.reference)
    announce()
    _tmctl("pull", f"{bundle.name}@candidate", "--to", str(device), "--root-key", root_key)
    return Chain(RunStore(store, name), student, bundle, device)


def _tmctl(*words: str) -> None:
    """Print and run a command; its failure ends the demo."""
    print(f"$ tmctl {' '.join(words)}", flush=True)
    code = subprocess.run([TMCTL, *words], check=False).returncode
    if code != 0:
        sys.exit(code)


def _root_key(registry: ReleaseRegistry) -> str:
    """The public root key of the store's releases, with keys that are created if the store has none.

    Raises:
        KeyFileError: the store has some, and the release key is not on this machine.
    """
    try:
        root = registry.roots()[-1]
    except KeyFileError:
        _tmctl("signing-keys", "create")
        root = registry.roots()[-1]
    load_key("release", keys_folder(), root.signers("release").keys)
    return root.public_keys("root")[0]


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
    generated = []
    for name, model in models.items():
        print(f"{name}: {len(PROMPTS)} clips of {SECONDS:g} s in PyTorch", flush=True)
        generated.append(_generate(model, tokenizer, recipe, folder, name))
    return generated


def _generate(model: Musicgen, tokenizer: Tokenizer, recipe: Recipe, folder: Path, name: str) -> Generated:
    """Sample the prompts with the teacher's settings in one batch, and write `FOLDER/NAME-NUMBER.wav`."""
    import torch

    from tinymusician.models.conditional_decoder import encode_text
    from tinymusician.models.sampling import decode_audio, sample_codes
    from tinymusician.runtime.audio_output import write_wave

    text, began = tokenizer(list(PROMPTS), padding=True, return_tensors="pt"), time.monotonic()
    codec, teacher = model.config.audio_encoder, recipe.teacher
    sampling = (teacher.guidance_scale, teacher.top_k, teacher.temperature)
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
        codes = sample_codes(model, condition, round(SECONDS * codec.frame_rate), range(len(PROMPTS)), *sampling)
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
    try:
        main()
    except TinyMusicianError as error:
        sys.exit(f"error: {error}")

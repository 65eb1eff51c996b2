"""How near `tmctl submit distill --dry-run --on here` comes to the time that sampling and training take.

    python -m benchmarks.plan [--steps 5]

Three teachers and students: the house band's, and two with random weights, of MusicGen-Small's width and of a wider
decoder with few layers. The plan measures this machine's processor first; then the same code as in a run samples all
sequences and trains.

    NAME_sampling, NAME_step                  the plan's seconds over the measured ones
    NAME_sampling_seconds, NAME_step_seconds  as measured
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.report import report
from benchmarks.shapes import CAPTIONS, Size, musicgen
from jobs.distill.models import load_models
from jobs.distill.objective import objective_config
from jobs.launch.planning import HERE, plan_distill
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.sequences import TeacherSamples, shared_sampler
from tinymusician.distill.signals import OnlineTeacher, SignalSet
from tinymusician.distill.task import DistillTask
from tinymusician.house_band.model import train_tokenizer
from tinymusician.models.saving import save_musicgen
from tinymusician.recipe import Recipe, load_recipe
from tinymusician.training.engine import AdamConfig
from tinymusician.training.task import to_device
from tinymusician.training.torch_engine import TorchEngine


def recipes(folder: Path) -> dict[str, Recipe]:
    """The three distillations, on the same ten prompts."""
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a slow waltz for flute, number {number}\n" for number in range(10)))
    common = (f"sequences.prompts={prompts}", "sequences.samples_per_prompt=4", "training.epochs=null")
    result = {"band": load_recipe("band", (*common, "sequences.seconds=5"))}
    shapes: dict[str, tuple[Size, int, str]] = {"small": ("small", 8, "[0,2,4,6]"), "wide": ("medium", 4, "[0,3]")}
    for name, (size, layers, chosen) in shapes.items():
        save_musicgen(folder / name, musicgen(size, max_layers=layers), train_tokenizer(CAPTIONS))
        student = ("student.kind=prune_layers", f"student.layers={chosen}", "training.batch_size=2")
        more = (f"teacher.model={folder / name}", "sequences.seconds=2", "training.global_batch=2")
        result[name] = load_recipe("tinymusician", (*common, *student, *more))
    return result


def measure(recipe: Recipe, steps: int) -> tuple[float, float]:
    """Seconds to sample all sequences, and of a step."""
    models, config, teacher = load_models(recipe), recipe.sequences, recipe.teacher
    frames = round(config.seconds * models.teacher.config.audio_encoder.frame_rate)
    parts, prompts, sampling = {}, load_prompts(config.prompts), 0.0
    for split, samples in (("train", config.samples_per_prompt), ("validation", 1), ("test", 1)):
        source = TeacherSamples(
            models.teacher,
            models.tokenizer,
            texts_of(prompts, split),  # type: ignore[arg-type]
            samples,
            frames,
            teacher.guidance_scale,
            teacher.top_k,
            teacher.temperature,
            0,
            config.prompts_per_shard,
            config.sampling_batch_size,
            torch.float32,
        )
        began = time.perf_counter()
        parts[split] = [source.make(index) for index in range(source.shards)]
        sampling += time.perf_counter() - began
    shared_sampler.cache_clear()
    (arrays,) = parts["train"]
    tokens = TokenDataset(arrays["codes"], arrays["text_ids"], arrays["text_mask"])
    signals = OnlineTeacher(models.teacher, tokens, teacher.passes, teacher.guidance_scale, torch.float32)
    train = SignalSet(signals, len(tokens.codes))
    objective, rows = objective_config(recipe, recipe.training.steps), recipe.training.batch_size
    task = DistillTask(models.student, train, train, objective, rows, 0)
    engine = TorchEngine(task.module.train(), AdamConfig())
    taken = [_step(task, engine, step, recipe.training.microbatches) for step in range(steps + 1)]
    return sampling, sum(taken[1:]) / steps


def _step(task: DistillTask, engine: TorchEngine, step: int, microbatches: int) -> float:
    began = time.perf_counter()
    for part in range(microbatches):
        batch = to_device(task.batch(step, part, microbatches), engine.device)
        loss, _ = task.loss(engine, batch, step, diagnostics=False)
        if part == microbatches - 1:
            engine.step(loss, 1e-5)
        else:
            engine.backward(loss)
    return time.perf_counter() - began


def main() -> None:
    """Plan and measure each."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=5)
    chosen = options.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in recipes(Path(folder)).items():
            plan = plan_distill(recipe, HERE)
            sampling, step = measure(recipe, chosen.steps)
            figures[f"{name}_sampling"] = plan.sampling_seconds / sampling
            figures[f"{name}_step"] = plan.step_seconds / step
            figures[f"{name}_sampling_seconds"], figures[f"{name}_step_seconds"] = sampling, step
            print(name, {key: round(value, 3) for key, value in figures.items() if key.startswith(name)}, flush=True)
    report("plan", figures, vars(chosen))


if __name__ == "__main__":
    main()

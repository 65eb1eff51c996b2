"""Loss balancing: the three methods of `joint.balance` on band-ttm's text encoder and codec.

    python -m benchmarks.balance [--seeds 3] [--clips 64]

Each component is pruned and fitted as `tmctl submit distill band-ttm` does it, and trained by the same loop for as many
steps, on samples of band-large; only the method of balancing differs. Of every held-out figure at the end, by rule:
`FIGURE/RULE`, the mean over the seeds, with `_least` and `_most` beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import get_args

import torch

from benchmarks.band import sample_band_large
from benchmarks.report import report
from jobs.distill.components import (
    MONITORS,
    REPORTED_METRICS,
    build_components,
    codec_piece_frames,
    fit_codec_projections,
    fit_text_projections,
)
from jobs.worker.stage import trainer_config
from tinymusician.artifacts.store import LocalStore
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.balance import Method
from tinymusician.distill.codec_distill import CodecDistillTask
from tinymusician.distill.text_distill import TextEncoderDistillTask
from tinymusician.models.protocols import Musicgen
from tinymusician.recipe import Recipe, load_recipe
from tinymusician.training.checkpoint import CheckpointManager
from tinymusician.training.engine import AdamConfig
from tinymusician.training.loop import Trainer
from tinymusician.training.metrics import MetricsLog
from tinymusician.training.task import Task
from tinymusician.training.torch_engine import TorchEngine

FRAMES = 250
"""Of a sequence: five seconds."""


def validated_after(stage: str, task: Task, recipe: Recipe, steps: int, rate: float) -> dict[str, float]:
    """All held-out figures of a task after its last step."""
    training = recipe.training
    with tempfile.TemporaryDirectory() as scratch:
        store = LocalStore(Path(scratch))
        engine = TorchEngine(
            task.module, AdamConfig(weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm)
        )
        plan = trainer_config(training, steps, rate, MONITORS[stage])
        Trainer(
            task, engine, plan, MetricsLog(store, "metrics.jsonl", -1), CheckpointManager(store, stage, MONITORS[stage])
        ).run()
    task.module.eval()
    figures: dict[str, float] = task.validate(engine)
    return figures


def trained(stage: str, task: Task, recipe: Recipe, steps: int, rate: float) -> dict[str, float]:
    """The figures that a stage reports, after its last step."""
    result = validated_after(stage, task, recipe, steps, rate)
    return {f"{stage}_{name}": result[name] for name in REPORTED_METRICS[stage]}


def compared(
    teacher: Musicgen, tokens: TokenDataset, held_out: TokenDataset, method: Method, seed: int, is_fitted: bool = True
) -> dict[str, float]:
    """Both parts, trained with one rule; their maps begin with least squares, or without a fit."""
    recipe = load_recipe("band-ttm", (f"training.seed={seed}", f"joint.balance={method}"))
    torch.manual_seed(seed)
    (text, codec), text_config, codec_config = build_components(recipe, teacher), recipe.text_encoder, recipe.codec
    assert text_config is not None
    assert codec_config is not None
    if is_fitted:
        fit_text_projections(text, teacher, tokens)
    batch = recipe.training.batch_size
    text_task = TextEncoderDistillTask(text, teacher, tokens, held_out, method, batch, seed, "cpu")
    figures = trained("text-encoder", text_task, recipe, text_config.steps, text_config.learning_rate)
    frames = codec_piece_frames(recipe, teacher)
    if is_fitted:
        fit_codec_projections(codec, teacher, tokens, frames, seed)
    codec_task = CodecDistillTask(
        codec, teacher.audio_encoder, tokens, held_out, frames, method, codec_config.batch_size, seed, "cpu"
    )
    return figures | trained("codec", codec_task, recipe, codec_config.steps, codec_config.learning_rate)


def main() -> None:
    """Every rule with every seed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--clips", type=int, default=64, help="captions to train on")
    chosen = options.parse_args()
    teacher, tokens = sample_band_large("train", chosen.clips, FRAMES, seed=1)
    _, held_out = sample_band_large("validation", 16, FRAMES, seed=2)
    figures: dict[str, float] = {}
    for method in get_args(Method):
        result = [compared(teacher, tokens, held_out, method, seed) for seed in range(chosen.seeds)]
        for name in result[0]:
            values = [one[name] for one in result]
            figures[f"{name}/{method}"] = statistics.mean(values)
            figures |= {f"{name}/{method}_least": min(values), f"{name}/{method}_most": max(values)}
        print(method, {name: figures[f"{name}/{method}"] for name in result[0]}, flush=True)
    report("balance", figures, {"seeds": chosen.seeds, "clips": chosen.clips})


if __name__ == "__main__":
    main()

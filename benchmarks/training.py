"""Time and memory of a distillation step on MusicGen's shapes, by ZeRO stage and other settings.

    python benchmarks/shapes.py small FOLDER
    python benchmarks/training.py FOLDER [--layers 0 8 16 23] [--workers 2] [--batch 2] [--seconds 2] [--cases …]

A teacher with random weights and a student of some of its layers, on the Ray that TMCTL_CLUSTER names or one that is
started here. A case is `zeroN`, with `,recompute` and `,bfloat16` as it is wanted. For each:

    CASE_seconds    a step
    CASE_gib        the most memory that the first worker took: of its GPU, or resident
    CASE_mfu        floating-point operations that the step needs (tinymusician.models.flops) over what a large product
                    of matrices reaches on this machine: start it on one like those of the cluster

A case that fails has no figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tinymusician.training.metrics import Row

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import report
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.runs import RunStore
from tinymusician.models.flops import distillation_flops
from tinymusician.models.shape import shape_of

CASES = ("zero0", "zero1", "zero2", "zero3", "zero0,recompute", "zero0,bfloat16", "zero2,bfloat16,recompute")
RECIPE = """
name: shapes
description: a step on MusicGen's shapes
teacher: {{model: {folder}}}
student: {{kind: prune_layers, layers: {layers}}}
sequences: {{prompts: {prompts}, seconds: {seconds}, samples_per_prompt: 1}}
training:
  {{steps: {steps}, batch_size: {batch}, warmup_steps: 1, log_every: 1,
  validate_every: {steps}, checkpoint_every: {steps}}}
"""


def prompts() -> list[dict[str, str]]:
    """As few captions as a distillation needs."""
    splits = ("train", "train", "train", "train", "validation", "test")
    facts = {"tempo": "slow", "time": "4/4", "genre": "reel", "instrumentation": "fiddle", "emotion": "calm"}
    return [{"text": f"a slow fiddle reel, number {n}", "split": split, **facts} for n, split in enumerate(splits)]


def rows_of(case: str, recipe: Path, workers: int, store: str, name: str = "") -> list[Row]:
    """Run a case, and read what it wrote down of its steps."""
    words = case.split(",")
    values = [
        f"training.zero_stage={words[0].removeprefix('zero')}",
        f"training.activation_checkpointing={str('recompute' in words).lower()}",
    ]
    values += [f"training.precision={'bfloat16' if 'bfloat16' in words else 'float32'}"]
    name = name or case.replace(",", "-")
    command = [str(Path(sys.executable).with_name("tmctl")), "submit", "distill", str(recipe), "--name", name]
    command += ["--workers", str(workers), *(word for value in values for word in ("--set", value))]
    subprocess.run(command, check=True, env={**os.environ, "TMCTL_STORE": store}, stdout=sys.stderr)
    rows = RunStore(open_store(store), name).metrics()
    return [row for row in rows if "loss" in row]


def product_speed(precision: str, threads: int) -> float:
    """Floating-point operations a second that a product of large matrices reaches, on the GPU if there is one."""
    import torch

    torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    size = 8192 if gpu else 2048
    one = torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=getattr(torch, precision))
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        one @ one
        if gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * size**3 / min(taken)


def main() -> None:
    """All cases, one after another, on the same sequences."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--layers", nargs="+", type=int, default=[0, 8, 16, 23], help="of the student")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--batch", type=int, default=2, help="sequences a worker")
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--cases", nargs="+", default=CASES)
    chosen = options.parse_args()
    teacher = shape_of(str(chosen.folder))
    assert teacher is not None, "benchmarks/shapes.py wrote its configuration"
    frames = round(chosen.seconds * teacher.frame_rate)
    student, steps = teacher.with_layers(len(chosen.layers)), frames + teacher.codebooks - 1
    needed = distillation_flops(teacher, student, 2 * chosen.batch, chosen.batch, steps)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts()))
        config = {"folder": chosen.folder.absolute(), "layers": chosen.layers, "seconds": chosen.seconds}
        config |= {"prompts": folder / "prompts.jsonl", "steps": chosen.steps, "batch": chosen.batch}
        (folder / "shapes.yaml").write_text(RECIPE.format(**config))
        store = (folder / "store").as_uri()
        # The teacher plays what all cases learn from.
        rows_of("zero0", folder / "shapes.yaml", chosen.workers, store, "samples")
        for case in chosen.cases:
            try:
                result = rows_of(case, folder / "shapes.yaml", chosen.workers, store)
            except subprocess.CalledProcessError:  # tmctl has said why: there is too little memory for it, say
                continue
            seconds = statistics.median(row["step_seconds"] for row in result[1:])
            speed = product_speed(
                "bfloat16" if "bfloat16" in case else "float32", (os.cpu_count() or 1) // chosen.workers
            )
            figures |= {f"{case}_seconds": seconds, f"{case}_gib": result[-1]["memory_gib"]}
            figures[f"{case}_mfu"] = needed / seconds / speed
    settings = {name: getattr(chosen, name) for name in ("layers", "workers", "batch", "seconds", "steps")}
    report("training", figures, {"model": chosen.folder.name, **settings})


if __name__ == "__main__":
    main()

"""What this project claims about GPUs, measured on one GPU in less than ten minutes.

    python -m benchmarks.gpu [--output FILE] [--device cuda|cpu] [--tiny]

It needs torch, transformers (4.57 or 5), NumPy and safetensors, and nothing else. MusicGen-Large's and -Small's shapes
get random weights on the device. Each part prints its figures as a line of JSON and adds them to FILE; a part that
fails says why, and the next one runs. `--tiny` takes small shapes, for a test on a CPU. Parts:

    device       operations per second of a large product, bytes per second of a copy
    agreement    greedy codes of the decode loop against the logits of transformers' forward pass; the KL of autocast
    sampling     steps and samples per second of the decode loop by batch size, and against transformers' decoder
    training     a step of Large → Small with the teacher online: seconds, codes per second, MFU, memory
    checkpoint   how long training stands still for a checkpoint, and how long writing it takes
    components   steps of text encoder, codec and joint stage, with TF32 products and without
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.sampling import with_transformers
from benchmarks.shapes import Size, musicgen
from tinymusician.artifacts.store import LocalStore
from tinymusician.codebooks import delay, inputs_for, valid
from tinymusician.data.tokens import TokenDataset
from tinymusician.distill.codec_distill import CodecDistillTask, ProjectedCodec
from tinymusician.distill.joint import JointTask
from tinymusician.distill.objective import LossWeights
from tinymusician.distill.schedules import TemperatureSchedule
from tinymusician.distill.signals import OnlineTeacher, SignalSet
from tinymusician.distill.task import DistillTask, ObjectiveConfig
from tinymusician.distill.text_distill import TextEncoderDistillTask
from tinymusician.models.conditional_decoder import ConditionedDecoder, TextCondition, encode_text
from tinymusician.models.flops import distillation_flops, peak_flops
from tinymusician.models.protocols import Musicgen
from tinymusician.models.prune_width_codec import prune_codec, with_reconstructions
from tinymusician.models.prune_width_text import ProjectedTextEncoder, prune_text_encoder, with_text
from tinymusician.models.sampling import CodeSampler
from tinymusician.models.tensor_shapes import DecoderShape
from tinymusician.runtime.sampling import guide
from tinymusician.training.checkpoint import CheckpointManager
from tinymusician.training.engine import AdamConfig, ComputeDtype
from tinymusician.training.task import Task, to_device
from tinymusician.training.torch_engine import TorchEngine

Figures = dict[str, float | str]
GUIDANCE, TEXT_LENGTH, ROWS = 3.0, 16, 64


@dataclass
class Setup:
    """The device, and the models that several parts use."""

    device: str
    tiny: bool

    @property
    def frames(self) -> int:
        """Of a sequence: 10 s."""
        return 60 if self.tiny else 500

    @cached_property
    def teacher(self) -> Musicgen:
        """MusicGen-Large's shape."""
        return self._model("large").requires_grad_(False)

    @cached_property
    def student(self) -> Musicgen:
        """MusicGen-Small's shape."""
        return self._model("small")

    def _model(self, size: Size) -> Musicgen:
        with torch.device(self.device):
            model = musicgen("tiny" if self.tiny else size, max_layers=2 if self.tiny else 48)
        return model.to(self.device)

    @cached_property
    def tokens(self) -> TokenDataset:
        """Random codes with random texts."""
        numbers, config = np.random.default_rng(0), self.teacher.config
        codes = numbers.integers(0, config.decoder.vocab_size, (ROWS, config.decoder.num_codebooks, self.frames))
        ids = numbers.integers(3, config.text_encoder.vocab_size, (ROWS, TEXT_LENGTH))
        return TokenDataset(codes.astype(np.int16), ids, np.ones_like(ids))

    def text(self, rows: int) -> TextCondition:
        """Text states for so many rows."""
        ids = torch.from_numpy(self.tokens.text_ids[np.arange(rows) % ROWS]).to(self.device)
        with torch.no_grad():
            return encode_text(self.teacher, ids, torch.ones_like(ids))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], repeats: int = 1, warm_up: int = 1) -> float:
        """Mean seconds of a function, after calls to warm up."""
        for _ in range(warm_up):
            function()
        self.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        self.synchronize()
        return (time.perf_counter() - began) / repeats

    def peak_gib(self) -> float:
        """The most memory of the device since the last call, in GiB; 0 on a CPU."""
        if self.device != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return peak


@contextmanager
def out_of_memory(figures: Figures, name: str) -> Iterator[None]:
    """Records that a device has too little memory for something, and goes on."""
    try:
        yield
    except torch.OutOfMemoryError:
        figures[name] = "out of memory"
        torch.cuda.empty_cache()


def device(setup: Setup) -> Figures:
    """The card, and what it reaches."""
    size = 256 if setup.tiny else 8192
    factors = [torch.randn(size, size, device=setup.device, dtype=torch.bfloat16) for _ in range(2)]
    product = setup.seconds(lambda: factors[0] @ factors[1], 10)
    source = torch.zeros(2**20 if setup.tiny else 2**30, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    copied = setup.seconds(lambda: target.copy_(source), 10)
    on_gpu = setup.device == "cuda"
    return {
        "name": torch.cuda.get_device_name() if on_gpu else "CPU",
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if on_gpu else 0.0,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda or "",
        "product_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_second": 2 * source.numel() / copied / 1e9,
    }


def agreement(setup: Setup) -> Figures:
    """Greedy codes are the likeliest of transformers' logits; bfloat16 against float32 on the same codes."""
    model, frames, text = setup.teacher, min(setup.frames, 60), setup.text(4)
    mask = torch.from_numpy(valid(model.config.decoder.num_codebooks, frames))
    figures: Figures = {}
    for name in ("bfloat16", "float32"):
        codes = CodeSampler(model, getattr(torch, name)).sample(text, frames, None, GUIDANCE)
        logits = _forced_logits(model, text, codes, torch.float32)
        expected = torch.from_numpy(delay(codes.numpy(), -1))
        figures[f"greedy_{name}"] = (logits.argmax(-1) == expected)[:, mask].double().mean().item()
    half = _forced_logits(model, text, codes, torch.bfloat16)
    log_p, log_q = logits[:, mask].log_softmax(-1), half[:, mask].log_softmax(-1)
    figures["bfloat16_kl_nats"] = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    return figures


@torch.no_grad()
def _forced_logits(model: Musicgen, text: TextCondition, codes_BKT: Tensor, dtype: torch.dtype) -> Tensor:
    """The guided logits of transformers' forward pass along codes, [B, K, S, V]."""
    pad, on = model.config.decoder.vocab_size, text.states.device
    inputs = torch.from_numpy(inputs_for(delay(codes_BKT.numpy(), pad), pad)).to(on)
    decoder = ConditionedDecoder(model)
    with torch.autocast(on.type, dtype, enabled=dtype != torch.float32):
        passes = [decoder(inputs, each.states, each.mask).float() for each in (text, text.without_text())]
    return guide(passes[0], passes[1], GUIDANCE).cpu()


def sampling(setup: Setup) -> Figures:
    """The decode loop in bfloat16 by batch size and for clips of 30 s, and in float32 against transformers' decoder."""
    sampler, frames, figures = CodeSampler(setup.teacher, torch.bfloat16), setup.frames, Figures()
    for rows, length in [(2, frames)] if setup.tiny else [(8, frames), (32, frames), (128, frames), (32, 3 * frames)]:
        name = f"{rows}_rows_{length}_frames"
        with out_of_memory(figures, name):
            setup.peak_gib()
            run = partial(sampler.sample, setup.text(rows), length, range(rows), GUIDANCE)
            began = time.perf_counter()
            run()
            figures[f"first_seconds_{name}"] = time.perf_counter() - began
            seconds = setup.seconds(run, warm_up=0)
            figures[f"step_ms_{name}"] = seconds / (length + 3) * 1e3
            figures[f"samples_per_second_{name}"] = rows / seconds
            figures[f"gib_{name}"] = setup.peak_gib()
    del sampler, run
    short, text = min(frames, 60), setup.text(8)
    before = setup.seconds(partial(with_transformers, setup.teacher, text, short))
    after = setup.seconds(partial(CodeSampler(setup.teacher).sample, text, short, range(8), GUIDANCE))
    return {**figures, "transformers_step_ms": before / (short + 3) * 1e3, "speedup_float32": before / after}


def training(setup: Setup) -> Figures:
    """A step of distillation by batch size: the teacher online in bfloat16, the student under autocast."""
    figures: Figures = {}
    steps = setup.frames + setup.teacher.config.decoder.num_codebooks - 1
    peak = peak_flops(torch.cuda.get_device_name()) if setup.device == "cuda" else None
    shapes = [_shape(model) for model in (setup.teacher, setup.student)]
    for rows in (2,) if setup.tiny else (4, 8, 16):
        with out_of_memory(figures, f"{rows}_rows"):
            setup.peak_gib()
            task = _distillation(setup, setup.student, rows, torch.bfloat16)
            seconds = _step_seconds(setup, task, "bfloat16")
            figures[f"step_seconds_{rows}_rows"] = seconds
            figures[f"codes_per_second_{rows}_rows"] = rows * setup.tokens.codes[0].size / seconds
            figures[f"gib_{rows}_rows"] = setup.peak_gib()
            flops = distillation_flops(shapes[0], shapes[1], 2 * rows, rows, steps)
            figures[f"tflops_{rows}_rows"] = flops / seconds / 1e12
            if peak is not None:
                figures[f"mfu_{rows}_rows"] = flops / seconds / peak
    return figures


def checkpoint(setup: Setup) -> Figures:
    """Training stands still while the state is copied to host memory; it is written and hashed in the background."""
    task = _distillation(setup, setup.student, 2, torch.bfloat16)
    engine = TorchEngine(task.module, AdamConfig(), "bfloat16", setup.device)
    _step(task, engine, 0)
    figures: Figures = {"gigabytes": sum(spec.nbytes for spec in engine.specs()) / 1e9}
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(LocalStore(Path(folder)), "checkpoints", "kl")
        for name in ("first", "later"):  # the first allocates its buffer
            began = time.perf_counter()
            manager.save(engine, 1, {"kl": 0.0})
            figures[f"{name}_stall_seconds"] = time.perf_counter() - began
            manager.drain()
            figures[f"{name}_write_seconds"] = time.perf_counter() - began
    return figures


def components(setup: Setup) -> Figures:
    """Steps of the other components, which train in float32: with products in TF32, and in full precision."""
    setup.__dict__.pop("teacher", None)  # training has rounded its layers
    teacher, tokens, on = setup.teacher, setup.tokens, setup.device
    frames = min(setup.frames, 50)
    source = setup.student.cpu()
    text = prune_text_encoder(source.text_encoder, range(0, 12, 2) if not setup.tiny else [0], 256, 4, 1024)
    codec = ProjectedCodec(prune_codec(source.audio_encoder, 32, 1), source.audio_encoder)
    student = with_reconstructions(with_text(source, text), codec.codec).to(on)
    projected = ProjectedTextEncoder(student.text_encoder, text.to_teacher)
    codec.codec = student.audio_encoder
    text_task = TextEncoderDistillTask(projected, teacher, tokens, tokens, "equal", 4, 0, on)
    codec_task = CodecDistillTask(codec, teacher.audio_encoder, tokens, tokens, frames, "equal", 4, 0, on)
    tasks: dict[str, Task] = {"text_encoder": text_task, "codec": codec_task}
    figures = _by_precision(setup, tasks)
    objective = _distillation(setup, student, 2, torch.bfloat16)  # rounds the teacher's layers, as a run does
    joint_task = JointTask(objective, projected, codec_task, teacher.text_encoder, "equal", on)
    return figures | _by_precision(setup, {"joint": joint_task})


def _by_precision(setup: Setup, tasks: Mapping[str, Task]) -> Figures:
    """Seconds of a step of each task, in full precision and with TF32."""
    figures: Figures = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision == "high"
        for name, task in tasks.items():
            figures[f"{name}_seconds_{precision}"] = _step_seconds(setup, task, "float32")
    torch.set_float32_matmul_precision("highest")
    return figures


def _distillation(setup: Setup, student: Musicgen, rows: int, dtype: torch.dtype) -> DistillTask:
    source = OnlineTeacher(setup.teacher, setup.tokens, "conditional", GUIDANCE, dtype)
    objective = ObjectiveConfig(lambda step: LossWeights(0.5, 0.5), TemperatureSchedule(2.0, 1.0, "sequence", 100))
    signals = SignalSet(source, ROWS)
    return DistillTask(student.to(setup.device), signals, signals, objective, rows, seed=0)


def _step_seconds(setup: Setup, task: Task, precision: ComputeDtype) -> float:
    engine, numbers = TorchEngine(task.module.train(), AdamConfig(), precision, setup.device), count()
    return setup.seconds(lambda: _step(task, engine, next(numbers)), 1 if setup.tiny else 10)


def _step(task: Task, engine: TorchEngine, number: int) -> None:
    batch = to_device(task.batch(number, 0, 1), engine.device)
    with engine.autocast():
        loss, _ = task.loss(engine, batch, number)
    engine.step(loss, 1e-5)


def _shape(model: Musicgen) -> DecoderShape:
    config = model.config.decoder
    return DecoderShape(config.num_hidden_layers, config.hidden_size, config.ffn_dim, heads=config.num_attention_heads)


PARTS = (device, agreement, sampling, training, checkpoint, components)


def main() -> None:
    """Measure all parts."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, default=Path("gpu.json"), help="gpu.json")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--tiny", action="store_true")
    chosen = options.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU; install its CUDA build and the driver, or say --device cpu --tiny")
    setup, results = Setup(chosen.device, chosen.tiny), dict[str, Figures]()
    for part in PARTS:
        began = time.perf_counter()
        try:
            results[part.__name__] = part(setup)
        except Exception as error:  # the other parts' figures are worth having
            traceback.print_exc()
            results[part.__name__] = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        results[part.__name__]["part_seconds"] = time.perf_counter() - began
        print(json.dumps({part.__name__: _rounded(results[part.__name__])}), flush=True)
        chosen.output.write_text(json.dumps({name: _rounded(each) for name, each in results.items()}, indent=2) + "\n")
    if failed := [name for name, figures in results.items() if "error" in figures]:
        sys.exit(f"error: {', '.join(failed)}: not measured; what happened is above")


def _rounded(figures: Figures) -> Figures:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}


if __name__ == "__main__":
    main()

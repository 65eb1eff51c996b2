"""Other ways to run a MusicGen on a CPU with the same request: transformers, Optimum's graphs, OpenVINO."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = "a fast and cheerful reel played on the fiddle"
THREADS, GUIDANCE, TOP_K = 2, 3.0, 250


def with_transformers(model_folder: Path, seconds: float) -> float:
    """Seconds of `generate` in float32."""
    import torch

    from tinymusician.models.musicgen import load_musicgen, load_tokenizer

    torch.set_num_threads(THREADS)
    model, tokenizer = load_musicgen(str(model_folder)), load_tokenizer(str(model_folder))
    text = tokenizer([PROMPT], return_tensors="pt")
    new = round(50 * seconds) + 3

    def run(count: int) -> None:
        with torch.no_grad():
            model.generate(**text, guidance_scale=GUIDANCE, top_k=TOP_K, max_new_tokens=count)

    run(10)
    return clocked(lambda: run(new))


# Long: one loop over four graphs, written out like the loops that it is compared with.
def with_optimum(folder: Path, seconds: float) -> float:
    """Seconds of a loop over Optimum's graphs, which hands the cache on without copies; text and codec included."""
    import onnxruntime

    from tinymusician.codebooks import delay, inputs_for
    from tinymusician.models.musicgen import load_tokenizer
    from tinymusician.runtime.sampling import SamplingParams, draw, guide

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS

    def open_(name: str) -> Any:
        path = folder / "optimum" / f"{name}.onnx"
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    text, first, later, codec = (
        open_(name) for name in ("text_encoder", "decoder_model", "decoder_with_past_model", "encodec_decode")
    )
    tokenizer = load_tokenizer(str(folder / "model"))
    value = onnxruntime.OrtValue.ortvalue_from_numpy

    def run(frames: int) -> None:
        encoded = tokenizer([PROMPT], return_tensors="np")
        ids, mask = encoded["input_ids"].astype(np.int64), encoded["attention_mask"].astype(np.int64)
        (states,) = text.run(None, {"input_ids": ids, "attention_mask": mask})
        feeds = {
            "encoder_hidden_states": value(np.concatenate([states, 0 * states])),
            "encoder_attention_mask": value(np.concatenate([mask, 0 * mask])),
        }
        random, num_codebooks = np.random.default_rng(0), np.arange(4)
        delayed = delay(np.zeros((1, 4, frames), np.int64), 2048)
        for step in range(frames + 3):
            column = inputs_for(delayed, 2048)[0, :, step]
            session = first if step == 0 else later
            feeds["input_ids"] = value(np.tile(column, 2)[:, None])
            expected = {entry.name for entry in session.get_inputs()}
            names = [entry.name for entry in session.get_outputs()]
            given = {name: feed for name, feed in feeds.items() if name in expected}
            actual = dict(zip(names, session.run_with_ort_values(names, given), strict=True))
            logits = actual["logits"].numpy().reshape(2, 4, -1)
            guided = guide(logits[0], logits[1], GUIDANCE)
            codes = draw(guided, random.random(4), SamplingParams(1.0, TOP_K))
            open_codebooks = (step >= num_codebooks) & (step - num_codebooks < frames)
            delayed[0, open_codebooks, step] = codes[open_codebooks]
            for name, cache in actual.items():
                if name.startswith("present"):
                    feeds[name.replace("present", "past_key_values")] = cache
        final = np.stack([delayed[0, book, book : book + frames] for book in range(4)])
        codec.run(None, {"audio_codes": final[None, None]})

    run(10)
    return clocked(lambda: run(round(50 * seconds)))


def with_openvino(folder: Path, position: int = 250, count: int = 12) -> dict[str, float]:
    """A step of one row of the fused float32 decoder in OpenVINO and in ONNX Runtime, and how far apart they are.

    OpenVINO's form of this attention takes a single row, and returns new caches at every step.
    """
    import onnxruntime
    import openvino

    path = folder / "float32" / "decoder.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "codes": random.integers(0, 2048, (1, 4)),
        "positions": np.full(1, position, np.int32),
        "text_mask": np.ones((1, 12), np.int32),
    }
    for entry in session.get_inputs():
        if entry.name not in feeds:
            length = 12 if entry.name.startswith("cross") else 2 * position
            feeds[entry.name] = random.standard_normal((1, entry.shape[1], length, entry.shape[3])).astype(np.float32)
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"})
    request = core.compile_model(str(path), "CPU").create_infer_request()
    apart = request.infer(feeds)["logits"] - session.run(["logits"], feeds)[0]
    took = {
        "openvino_step_ms": statistics.median(clocked(lambda: request.infer(feeds)) for _ in range(count)),
        "onnxruntime_step_ms": statistics.median(clocked(lambda: session.run(None, feeds)) for _ in range(count)),
    }
    return {name: 1000 * value for name, value in took.items()} | {"openvino_logits_apart": float(np.abs(apart).max())}


def clocked(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

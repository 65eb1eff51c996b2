"""Speed of the teacher's decode loop against a loop over transformers' decoder, and against its own products.

    python -m benchmarks.sampling [--model band-large|small|medium|large] [--rows 32] [--seconds 10] [--rounds 2]

`small`, `medium` and `large` are MusicGen's shapes with random weights. Both loops sample the same rows with guidance,
which doubles them in the decoder; the second grows its cache with each step and draws with NumPy. The loops take turns.
Medians of all rounds but the first, in which the memory allocator still returns every buffer of the growing cache to
the system:

    transformers_ms, float32_ms, bfloat16_ms    a step, over all steps of a clip
    speedup_NAME                                times faster than transformers' decoder
    speedup_first_NAME                          the same in the first round
    over_products_NAME                          a step over its matrix products alone: weights and attention
    over_weights_NAME                           a step over the products with weights alone

bfloat16 is measured where the processor has such products.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch.nn import functional

from benchmarks.report import report
from benchmarks.shapes import DECODERS, Size, musicgen
from tinymusician.codebooks import valid
from tinymusician.models.conditional_decoder import TextCondition
from tinymusician.models.decoder_weights import DecoderWeights, decoder_weights
from tinymusician.models.protocols import Musicgen
from tinymusician.models.sampling import CodeSampler
from tinymusician.runtime.sampling import SamplingParams, draw, guide

GUIDANCE, TOP_K, TEXT_LENGTH, PRODUCT_STEPS = 3.0, 250, 16, 24


def main() -> None:
    """Measure one model."""
    from tinymusician.models.musicgen import load_musicgen

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="band-large", help="a size, a packaged model or a folder; band-large")
    options.add_argument("--rows", type=int, default=32)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    torch.manual_seed(0)
    model = musicgen(cast("Size", chosen.model)) if chosen.model in DECODERS else load_musicgen(chosen.model)
    frames = round(chosen.seconds * float(model.config.audio_encoder.frame_rate))
    figures = measure(model, chosen.rows, frames, chosen.rounds)
    report("sampling", figures, {**vars(chosen), "threads": torch.get_num_threads()})


def measure(model: Musicgen, rows: int, frames: int, rounds: int) -> dict[str, float]:
    """All figures of one model."""
    states = torch.randn(rows, TEXT_LENGTH, model.config.text_encoder.d_model)
    text = TextCondition(states, torch.ones(rows, TEXT_LENGTH, dtype=torch.long))
    dtypes = {"float32": torch.float32}
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        dtypes["bfloat16"] = torch.bfloat16
    steps = frames + model.decoder.config.num_codebooks - 1
    loops = {"transformers": partial(with_transformers, model, text, frames)}
    for name, dtype in dtypes.items():
        loops[name] = partial(with_decode_loop, CodeSampler(model, dtype), text, frames)
        weights = decoder_weights(model, dtype)
        loops[f"{name}_products"] = partial(products, weights, rows, np.linspace(1, steps, PRODUCT_STEPS).astype(int))
        loops[f"{name}_weights"] = partial(products, weights, rows, [0] * PRODUCT_STEPS)
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            began = time.perf_counter()
            count = loop()
            taken[name].append((time.perf_counter() - began) / count * 1e3)
            print(f"{name}: {taken[name][-1]:.2f} ms per step", flush=True)
    step = {name: statistics.median(each[1:]) for name, each in taken.items()}
    figures = {f"{name}_ms": each for name, each in step.items()}
    for name in dtypes:
        figures[f"speedup_{name}"] = step["transformers"] / step[name]
        figures[f"speedup_first_{name}"] = taken["transformers"][0] / taken[name][0]
    for name in ("transformers", *dtypes):
        precision = "float32" if name == "transformers" else name
        figures[f"over_products_{name}"] = step[name] / step[f"{precision}_products"]
        figures[f"over_weights_{name}"] = step[name] / step[f"{precision}_weights"]
    return figures


def with_decode_loop(sampler: CodeSampler, text: TextCondition, frames: int) -> int:
    """Sample a clip; the number of steps."""
    codes = sampler.sample(text, frames, range(len(text.states)), GUIDANCE, TOP_K)
    return frames + codes.shape[1] - 1


@torch.no_grad()
def with_transformers(model: Musicgen, text: TextCondition, frames: int) -> int:
    """Sample a clip with transformers' decoder, a cache that grows, and draws in NumPy; the number of steps."""
    rows, config = len(text.states), model.decoder.config
    project = getattr(model, "enc_to_dec_proj", lambda states: states)
    states = project(text.states) * text.mask[..., None]
    states = torch.cat([states, torch.zeros_like(states)])
    mask = torch.cat([text.mask, torch.zeros_like(text.mask)])
    carries, sampling = valid(config.num_codebooks, frames), SamplingParams(1.0, TOP_K)
    numbers, past = np.random.default_rng(0), None
    column = torch.full((rows, config.num_codebooks), config.vocab_size, device=states.device)
    for step in range(carries.shape[1]):
        output = model.decoder(
            input_ids=column.repeat(2, 1).reshape(-1, 1),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            past_key_values=past,
            use_cache=True,
        )
        past = output.past_key_values
        logits = output.logits[:, -1].view(2, rows, config.num_codebooks, -1)
        guided = guide(logits[0], logits[1], GUIDANCE).cpu().numpy()
        drawn = torch.from_numpy(draw(guided, numbers.random(guided.shape[:-1]), sampling))
        column = torch.where(torch.from_numpy(carries[:, step]), drawn, config.vocab_size).to(states.device)
    return carries.shape[1]


@torch.no_grad()
def products(weights: DecoderWeights, rows: int, lengths: Sequence[int]) -> int:
    """The matrix products of a guided step at each number of cache positions, and nothing else; 0 omits attention."""
    width, both = weights.heads.shape[1], 2 * rows
    hidden = torch.randn(both, width)
    attention = torch.float32  # of the decode loop on a CPU
    cache = torch.randn(2, both, weights.num_heads, max(lengths), weights.head_width, dtype=attention)
    queries = torch.randn(both, weights.num_heads, 1, weights.head_width, dtype=attention)
    text = torch.randn(2, rows, weights.num_heads, TEXT_LENGTH, weights.head_width, dtype=attention)
    cast_hidden = hidden.to(weights.dtype)
    inner = torch.randn(both, weights.layers[0].feed_forward_in.shape[0]).to(weights.dtype)
    for length in lengths:
        for layer in weights.layers:
            functional.linear(cast_hidden, layer.queries_keys_values)
            functional.linear(cast_hidden, layer.self_output)
            functional.linear(cast_hidden[:rows], layer.cross_queries)
            functional.linear(cast_hidden[:rows], layer.cross_output)
            functional.linear(cast_hidden, layer.feed_forward_in)
            functional.linear(inner, layer.feed_forward_out)
            if length:
                (queries @ cache[0, :, :, :length].transpose(2, 3)) @ cache[1, :, :, :length]
                (queries[:rows] @ text[0].transpose(2, 3)) @ text[1]
        functional.linear(hidden, weights.heads)
    return len(lengths)


if __name__ == "__main__":
    main()

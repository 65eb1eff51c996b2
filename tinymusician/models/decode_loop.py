"""Decodes a batch step by step: static caches, guidance and draws on the device, and CUDA graphs on CUDA.

All rows have the same length, so the caches are buffers of that length, and continuous batching would gain nothing.
Keys and values of the text are computed once. Rows without text skip cross-attention: their text states are zero and
its projections have no bias, so it would add zero.

Agrees with transformers' `MusicgenForConditionalGeneration.generate`. Shapes: B row, P pass, R = P·B, K codebook,
V vocabulary, S step of the delayed sequence, L text token, D width, H attention head, W width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from tinymusician.models.decoder_weights import DecoderWeights, LayerWeights
from tinymusician.models.draw import draw_codes
from tinymusician.runtime.sampling import SamplingParams, guide

_GRAPH_POSITIONS = 128


@dataclass(frozen=True)
class DecodeShape:
    """A batch: `rows` of `steps` under texts of `text_length` tokens; `guidance` 1 is one pass, with text only."""

    rows: int
    steps: int
    text_length: int
    guidance: float
    sampling: SamplingParams

    @property
    def passes(self) -> int:
        """The number of rows that the decoder computes for each row of the batch."""
        return 1 if self.guidance == 1 else 2


class DecodeLoop:
    """The buffers of a batch of one shape, for any number of runs."""

    def __init__(self, weights: DecoderWeights, shape: DecodeShape, read_multiple: int | None = None) -> None:
        """A step reads a multiple of `read_multiple` cache positions; by default 1, or with CUDA graphs 128."""
        self.weights, self.shape = weights, shape
        rows, num_codebooks, device = shape.rows, weights.num_codebooks, weights.device
        # A CPU reads as many keys a second in float32 as in bfloat16.
        self._dtype = weights.dtype if device.type == "cuda" else torch.float32
        self._graphs = _CudaGraphs() if device.type == "cuda" and weights.group is None else None
        self._multiple = read_multiple or (_GRAPH_POSITIONS if self._graphs else 1)
        positions = self._round_up(shape.steps)
        new = partial(torch.zeros, device=device)
        layers, heads, width = len(weights.layers), weights.num_heads, weights.head_width
        self._cache = new((layers, 2, shape.passes * rows, heads, positions, width), dtype=self._dtype)
        self._text_cache = new((layers, 2, rows, heads, shape.text_length, width), dtype=self._dtype)
        self._text_mask = new((rows, 1, 1, shape.text_length), dtype=self._dtype)
        self._positions = weights.positions(shape.steps)
        self._offsets = torch.arange(num_codebooks, device=device) * (weights.vocab_size + 1)
        self._carries = new((shape.steps, num_codebooks), dtype=torch.bool)
        self._uniforms = new((shape.steps, rows, num_codebooks), dtype=torch.float64)
        self._delayed = new((shape.steps, rows, num_codebooks), dtype=torch.long)
        self._codes = new((rows, num_codebooks), dtype=torch.long)
        self._step = new((1,), dtype=torch.long)
        self._is_finite = new((), dtype=torch.bool)

    @torch.no_grad()
    def run(self, states_BLD: Tensor, mask_BL: Tensor, carries_SK: Tensor, uniforms_SBK: Tensor) -> Tensor | None:
        """The delayed codes [B, K, S] under projected text states; None if logits are not finite.

        `carries_SK` are the positions that carry a code, and each of the uniform random numbers determines one.
        """
        self._start(states_BLD, mask_BL, carries_SK, uniforms_SBK)
        advance = self._advance if self._graphs is None else partial(self._graphs.run, self._advance)
        for step in range(self.shape.steps):
            advance(self._round_up(step + 1))
        return self._delayed.permute(1, 2, 0).clone() if self._is_finite else None

    def _round_up(self, length: int) -> int:
        return -(-length // self._multiple) * self._multiple

    def _start(self, states_BLD: Tensor, mask_BL: Tensor, carries_SK: Tensor, uniforms_SBK: Tensor) -> None:
        weights = self.weights
        for layer, cache in zip(weights.layers, self._text_cache, strict=True):
            projected = functional.linear(states_BLD.to(weights.dtype), layer.cross_keys_values)
            cache.copy_(projected.view(*mask_BL.shape, 2, -1, weights.head_width).permute(2, 0, 3, 1, 4))
        self._text_mask.copy_((mask_BL[:, None, None] == 0) * torch.finfo(self._dtype).min)
        self._carries.copy_(carries_SK)
        self._uniforms.copy_(uniforms_SBK)
        self._codes.fill_(weights.vocab_size)
        self._step.zero_()
        self._is_finite.fill_(True)

    def _advance(self, length: int) -> None:
        """One step, which reads the first `length` positions of the cache."""
        weights, index = self.weights, self._step
        mask = None
        if self._multiple > 1:  # the last positions may not be computed yet
            mask = torch.zeros((1, 1, 1, length), dtype=self._dtype, device=weights.device)
            mask.masked_fill_(torch.arange(length, device=weights.device) > index, torch.finfo(self._dtype).min)
        embedded = functional.embedding(self._codes + self._offsets, weights.embeddings).sum(1)
        hidden = (embedded + self._positions.index_select(0, index)).repeat(self.shape.passes, 1)
        for layer, cache, text in zip(weights.layers, self._cache, self._text_cache, strict=True):
            hidden = self._layer(layer, hidden, cache, text, length, mask)
        logits = functional.linear(weights.final_norm(hidden), weights.heads)
        logits = logits.view(self.shape.passes, self.shape.rows, weights.num_codebooks, -1)
        guided = logits[0] if self.shape.passes == 1 else guide(logits[0], logits[1], self.shape.guidance)
        self._is_finite &= torch.isfinite(guided).all()
        drawn = draw_codes(guided, self._uniforms.index_select(0, index)[0], self.shape.sampling)
        # `torch.where` would copy its number from the host, which a CUDA graph cannot record.
        self._codes.copy_(drawn.masked_fill(~self._carries.index_select(0, index), weights.vocab_size))
        self._delayed.index_copy_(0, index, self._codes[None])
        self._step += 1

    def _layer(
        self, layer: LayerWeights, hidden_RD: Tensor, cache: Tensor, text: Tensor, length: int, mask: Tensor | None
    ) -> Tensor:
        """A layer's output; `cache` are its keys and values [2, R, H, S, W], and `text` those of the text."""
        dtype, rows = self.weights.dtype, self.shape.rows
        normed = layer.self_norm(hidden_RD).to(dtype)
        queries, keys, values = self._by_head(functional.linear(normed, layer.queries_keys_values), 3)
        cache[0].index_copy_(2, self._step, keys[:, :, None])
        cache[1].index_copy_(2, self._step, values[:, :, None])
        attended = self._attend(queries, cache[0, :, :, :length], cache[1, :, :, :length], mask)
        hidden = hidden_RD + self._reduce(functional.linear(attended, layer.self_output))

        normed = layer.cross_norm(hidden[:rows]).to(dtype)
        (queries,) = self._by_head(functional.linear(normed, layer.cross_queries), 1)
        attended = self._attend(queries, text[0], text[1], self._text_mask)
        hidden[:rows] += self._reduce(functional.linear(attended, layer.cross_output))

        normed = layer.feed_forward_norm(hidden).to(dtype)
        inner = layer.activation(functional.linear(normed, layer.feed_forward_in))
        return hidden + self._reduce(functional.linear(inner, layer.feed_forward_out))

    def _by_head(self, projected: Tensor, count: int) -> tuple[Tensor, ...]:
        """`count` projections in one, by head: [R, H, W] each."""
        split = projected.to(self._dtype).view(len(projected), count, -1, self.weights.head_width)
        return split.unbind(1)

    def _attend(self, queries_RHW: Tensor, keys_RHLW: Tensor, values_RHLW: Tensor, mask: Tensor | None) -> Tensor:
        attend = functional.scaled_dot_product_attention if queries_RHW.is_cuda else _attend_on_cpu
        attended = attend(queries_RHW[:, :, None], keys_RHLW, values_RHLW, mask)
        return attended.reshape(len(queries_RHW), -1).to(self.weights.dtype)

    def _reduce(self, output_RD: Tensor) -> Tensor:
        """The sum over the processes of a tensor-parallel decoder."""
        if self.weights.group is not None:
            dist.all_reduce(output_RD, group=self.weights.group)
        return output_RD


class _CudaGraphs:
    """CUDA graphs of a step, one for each number of cache positions that it reads.

    A graph is captured after the first step of its length, which ran without it and so prepared the kernels.
    """

    def __init__(self) -> None:
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, advance: Callable[[int], None], length: int) -> None:
        """One step of `advance`, by its graph if there is one."""
        if length in self._graphs:
            self._graphs[length].replay()
            return
        advance(length)
        graph = torch.cuda.CUDAGraph()
        # Records the step's kernels, and runs none; other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            advance(length)
        self._graphs[length] = graph


def _attend_on_cpu(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention as two products.

    PyTorch's own kernel is slower for one query, and its result for a row depends on the thread that computes it.
    """
    scores = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
    attended: Tensor = (scores if mask is None else scores + mask).softmax(-1) @ values
    return attended

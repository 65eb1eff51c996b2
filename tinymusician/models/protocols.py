"""What this project uses of transformers' models, as types: transformers' own classes are not typed.

Implementations: `MusicgenForConditionalGeneration`, `T5EncoderModel`, `EncodecModel`, `MusicgenForCausalLM` and
`PreTrainedTokenizerFast` of transformers. Shapes: B batch, K codebook, S step, V vocabulary, D width, T frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


class TokenizerOutput(Protocol):
    """Token ids and their mask, by name: `input_ids` and `attention_mask`, [B, L], as tensors or NumPy arrays."""

    def __getitem__(self, name: str) -> Any: ...

    def to(self, device: str | torch.device) -> Self: ...


class BackendTokenizer(Protocol):
    """The tokenizer of the `tokenizers` library."""

    def to_str(self) -> str: ...

    def save(self, path: str) -> None: ...


class Tokenizer(Protocol):
    """transformers' fast tokenizer."""

    backend_tokenizer: BackendTokenizer
    model_max_length: int

    def __len__(self) -> int: ...

    def __call__(self, text: Sequence[str], **options: object) -> TokenizerOutput: ...

    def save_pretrained(self, folder: Path) -> object: ...


class TextConfig(Protocol):
    """T5's configuration."""

    vocab_size: int
    hidden_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    is_gated_act: bool
    feed_forward_proj: str
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float


class EncodecConfig(Protocol):
    """EnCodec's configuration."""

    sampling_rate: int
    frame_rate: int
    hop_length: int
    codebook_size: int
    codebook_dim: int
    num_quantizers: int
    hidden_size: int
    num_filters: int
    num_residual_layers: int
    num_lstm_layers: int
    upsampling_ratios: Sequence[int]
    norm_type: str
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    dilation_growth_rate: int
    compress: int
    use_causal_conv: bool
    use_conv_shortcut: bool
    pad_mode: str
    audio_channels: int
    normalize: bool


class DecoderConfig(Protocol):
    """The configuration of MusicGen's language model."""

    num_codebooks: int
    vocab_size: int
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    ffn_dim: int
    max_position_embeddings: int
    audio_channels: int
    scale_embedding: bool
    activation_function: str


class MusicgenConfig(Protocol):
    """MusicGen's configuration; a guidance-conditioned model has a `guidance_range`, others have none.

    `guidance_distilled` is there for this project's students, and true if they have one scale in their weights.
    """

    text_encoder: TextConfig
    audio_encoder: EncodecConfig
    decoder: DecoderConfig
    guidance_range: Sequence[float]
    guidance_distilled: bool

    def to_dict(self) -> dict[str, object]: ...


class GenerationConfig(Protocol):
    """The defaults of generation."""

    guidance_scale: float
    max_length: int
    max_new_tokens: int | None


class LoadResult(Protocol):
    """The keys that did not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Model(Protocol):
    """A `torch.nn.Module`, as far as it does not depend on its kind."""

    training: bool

    def __hash__(self) -> int: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, Any]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, weights: Mapping[str, Tensor], /, strict: bool = True) -> LoadResult: ...

    def to(self, device: str | torch.device) -> Self: ...

    def cpu(self) -> Self: ...

    def half(self) -> Self: ...

    def float(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...

    def eval(self) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...


class TextEncoderOutput(Protocol):
    """`last_hidden_state` [B, L, D]."""

    last_hidden_state: Tensor


class TextEncoderModel(Model, Protocol):
    """A T5 encoder."""

    config: TextConfig

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> TextEncoderOutput: ...


class Codebook(Protocol):
    """One codebook of EnCodec's quantizer: `embed` [V, D], and the statistics of its moving averages."""

    codebook_size: int
    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor

    def quantize(self, latents_ND: Tensor) -> Tensor: ...


class QuantizerLayer(Protocol):
    """One layer of EnCodec's quantizer."""

    codebook: Codebook


class Quantizer(Model, Protocol):
    """EnCodec's residual vector quantizer."""

    layers: Sequence[QuantizerLayer]

    def decode(self, codes_KBT: Tensor) -> Tensor: ...


class LayerStack(Model, Protocol):
    """EnCodec's encoder or decoder."""

    layers: nn.ModuleList

    def __call__(self, values: Tensor) -> Tensor: ...


class CodecEncoderOutput(Protocol):
    """`audio_codes` [1, B, K, T]."""

    audio_codes: Tensor


class CodecDecoderOutput(Protocol):
    """`audio_values` [B, 1, N]."""

    audio_values: Tensor


class Codec(Model, Protocol):
    """EnCodec."""

    config: EncodecConfig
    encoder: LayerStack
    decoder: LayerStack
    quantizer: Quantizer

    def encode(
        self, wave_B1N: Tensor, mask: Tensor | None = None, bandwidth: float | None = None
    ) -> CodecEncoderOutput: ...

    def decode(self, codes_1BKT: Tensor, scales: Sequence[Tensor | None]) -> CodecDecoderOutput: ...


class DecoderOutput(Protocol):
    """`logits` [B * K, S, V]; the cache and every layer's states if they were requested."""

    logits: Tensor
    past_key_values: object
    hidden_states: Sequence[Tensor]


class Positions(Protocol):
    """The table of sinusoidal positions, [steps, D], which transformers does not save."""

    weights: Tensor

    def get_embedding(self, steps: int, width: int) -> Tensor: ...


class Attention(Protocol):
    """An attention of the language model, without biases."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear


class DecoderLayer(Protocol):
    """A layer of the language model."""

    self_attn: Attention
    self_attn_layer_norm: nn.LayerNorm
    encoder_attn: Attention
    encoder_attn_layer_norm: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear
    final_layer_norm: nn.LayerNorm

    def activation_fn(self, values: Tensor) -> Tensor: ...


class DecoderBody(Protocol):
    """The layers of the language model, its embeddings of codes and positions, and its final norm."""

    embed_tokens: nn.ModuleList
    embed_positions: Positions
    layers: nn.ModuleList
    layer_norm: nn.LayerNorm


class InnerDecoder(Protocol):
    """The language model without its heads."""

    decoder: DecoderBody


class MusicgenDecoder(Model, Protocol):
    """MusicGen's language model."""

    config: DecoderConfig
    model: InnerDecoder
    lm_heads: nn.ModuleList

    def __call__(self, **inputs: object) -> DecoderOutput: ...

    def gradient_checkpointing_enable(self, options: Mapping[str, object]) -> None: ...


class HasWeights(Protocol):
    """Anything with a state dict."""

    def state_dict(self) -> Mapping[str, Tensor]: ...


class HasParameters(Protocol):
    """Anything with parameters."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


class HasTextEncoder(Protocol):
    """A model with a text encoder."""

    @property
    def text_encoder(self) -> TextEncoderModel: ...


class Musicgen(Model, Protocol):
    """MusicGen: text encoder, language model and codec."""

    config: MusicgenConfig
    generation_config: GenerationConfig
    text_encoder: TextEncoderModel
    audio_encoder: Codec
    decoder: MusicgenDecoder

    def save_pretrained(self, folder: Path, safe_serialization: bool = True) -> None: ...

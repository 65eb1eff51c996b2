"""Encodes a prompt to the decoder's cross-attention: tokens, text states, keys and values of every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinymusician.errors import RequestError
from tinymusician.runtime.decoder import CrossAttentionKV
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.session import Array, Session

MAX_PROMPT_CHARACTERS = 5_000


class TextEncoder:
    """Tokenizer, text encoder and cross-attention graph of a bundle."""

    def __init__(self, tokenizer: Path, encoder: Session, cross: Session, max_tokens: int) -> None:
        """`encoder` and `cross` are ONNX Runtime sessions; `max_tokens` limits the prompt."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._max_tokens = max_tokens
        self._encoder, self._cross = encoder, cross
        self._width = int(encoder.get_outputs()[0].shape[2])

    def __call__(self, prompt: str, scale: float | None = None) -> CrossAttentionKV:
        """Encode a prompt; `scale` is the guidance scale of a guidance-conditioned model.

        Raises:
            RequestError: the prompt is empty or too long.
        """
        if not prompt.strip():
            raise RequestError("prompt: is empty")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise RequestError(f"prompt: {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed")
        ids = np.array([self._tokenizer.encode(prompt).ids], np.int64)
        if ids.shape[1] > self._max_tokens:
            raise RequestError(f"prompt: {ids.shape[1]} tokens; at most {self._max_tokens} are allowed")
        mask = np.ones(ids.shape, np.int32)
        try:
            (states,) = self._encoder.run(None, {"ids": ids, "mask": mask})
        except Exception as error:  # ONNX Runtime's exceptions
            raise as_engine_error("the text encoder", error) from error
        extra_inputs = {} if scale is None else {"guidance": np.array([scale], np.float32)}
        return self._cross_attention(states, mask, extra_inputs)

    def null(self) -> CrossAttentionKV:
        """The null condition of classifier-free guidance: zero states under a zero mask."""
        return self._cross_attention(np.zeros((1, 1, self._width), np.float32), np.zeros((1, 1), np.int32), {})

    def _cross_attention(self, states: Array, mask: Array, extra_inputs: dict[str, Array]) -> CrossAttentionKV:
        names = [value.name for value in self._cross.get_outputs()]
        values = self._cross.run(None, {"text_states": states, "text_mask": mask, **extra_inputs})
        arrays = dict(zip(names, values, strict=True))
        layers = len(names) // 2
        order = [f"cross_{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]
        return CrossAttentionKV([arrays[name][0] for name in order], mask[0])

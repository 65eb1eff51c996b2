"""Prompts to what the decoder attends to: tokens, text states, every layer's keys and values, once a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinymusician.errors import RequestError
from tinymusician.runtime.decoder import CrossAttentionKV
from tinymusician.runtime.errors import as_engine_error

LONGEST_PROMPT = 5_000


class TextEncoder:
    """Tokenizer, text encoder and cross-attention graph of a bundle."""

    def __init__(self, tokenizer: Path, encoder: Any, cross: Any, most_tokens: int) -> None:
        """`encoder` and `cross` are ONNX Runtime sessions; prompts of more than `most_tokens` are refused."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._most_tokens = most_tokens
        self._encoder, self._cross = encoder, cross
        self._width = int(encoder.get_outputs()[0].shape[2])

    def __call__(self, prompt: str, scale: float | None = None) -> CrossAttentionKV:
        """What the decoder attends to for a prompt; `scale` is for a model that is told its guidance.

        Raises:
            RequestError: the prompt is empty, or far too long to be meant.
        """
        if not prompt.strip():
            raise RequestError("prompt: is empty; some words are needed")
        if len(prompt) > LONGEST_PROMPT:
            raise RequestError(f"prompt: {len(prompt)} characters; at most {LONGEST_PROMPT} are allowed")
        ids = np.array([self._tokenizer.encode(prompt).ids], np.int64)
        if ids.shape[1] > self._most_tokens:
            raise RequestError(f"prompt: {ids.shape[1]} tokens; at most {self._most_tokens} are allowed")
        mask = np.ones(ids.shape, np.int32)
        try:
            (states,) = self._encoder.run(None, {"ids": ids, "mask": mask})
        except Exception as error:  # ONNX Runtime's own kinds
            raise as_engine_error("the text encoder", error) from error
        extra_inputs = {} if scale is None else {"guidance": np.array([scale], np.float32)}
        return self._attended(states, mask, extra_inputs)

    def nothing(self) -> CrossAttentionKV:
        """The null condition of classifier-free guidance: zero states under a zero mask."""
        return self._attended(np.zeros((1, 1, self._width), np.float32), np.zeros((1, 1), np.int32), {})

    def _attended(self, states: Any, mask: Any, extra_inputs: dict[str, Any]) -> CrossAttentionKV:
        names = [value.name for value in self._cross.get_outputs()]
        values = self._cross.run(None, {"text_states": states, "text_mask": mask, **extra_inputs})
        arrays = dict(zip(names, values, strict=True))
        layers = len(names) // 2
        order = [f"cross_{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]
        return CrossAttentionKV([arrays[name][0] for name in order], mask[0])

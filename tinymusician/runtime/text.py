"""Encodes a prompt to the decoder's cross-attention: tokens, text states, keys and values of every layer."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinymusician.errors import BundleError, EngineError, RequestError, contain_panics, first_line
from tinymusician.runtime.decoder import CrossAttentionKV
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.session import Array, Session

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_PROMPT_CHARACTERS = 5_000


def read_tokenizer(path: Path) -> Tokenizer:
    """A bundle's tokenizer.

    Raises:
        BundleError: it is damaged.
    """
    from tokenizers import Tokenizer

    try:
        with contain_panics():
            return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise BundleError(f"bundle {path.parent}: {path.name} is damaged ({first_line(error)})") from error


class TextEncoder:
    """Tokenizer, text encoder and cross-attention graph of a bundle."""

    def __init__(self, tokenizer: Path, encoder: Session, cross: Session, max_tokens: int) -> None:
        """`encoder` and `cross` are ONNX Runtime sessions; `max_tokens` limits the prompt."""
        self._tokenizer = read_tokenizer(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._unknown = _unknown_id(self._tokenizer)
        self._max_tokens = max_tokens
        self._encoder, self._cross = encoder, cross
        self._width = int(encoder.get_outputs()[0].shape[2])

    def __call__(self, prompt: str, scale: float | None = None) -> CrossAttentionKV:
        """Encode a prompt, which ends after as many tokens as the model reads.

        `scale` is the guidance scale of a guidance-conditioned model.

        Raises:
            RequestError: the prompt is empty or not valid Unicode.
        """
        if not prompt.strip():
            raise RequestError("prompt: is empty", "prompt")
        ids = np.array([self._encode(prompt)[0].ids], np.int64)
        mask = np.ones(ids.shape, np.int32)
        try:
            (states,) = self._encoder.run(None, {"ids": ids, "mask": mask})
        except Exception as error:  # ONNX Runtime's exceptions
            raise as_engine_error("the text encoder", error) from error
        return self._cross_attention(states, mask, scale)

    def null(self, scale: float | None = None) -> CrossAttentionKV:
        """The null condition of classifier-free guidance: zero states under a zero mask."""
        return self._cross_attention(np.zeros((1, 1, self._width), np.float32), np.zeros((1, 1), np.int32), scale)

    def check_length(self, prompt: str) -> None:
        """Check that the model reads a whole prompt.

        Raises:
            RequestError: it has too many characters or tokens, or is not valid Unicode.
        """
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise RequestError(
                f"prompt: {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed", "prompt"
            )
        if (parts := self._encode(prompt))[1:]:
            special = sum(parts[0].special_tokens_mask)
            count = special + sum(len(part.ids) - sum(part.special_tokens_mask) for part in parts)
            raise RequestError(f"prompt: {count} tokens; at most {self._max_tokens} are allowed", "prompt")

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the tokenizer maps to its unknown token, each once, in their order.

        Raises:
            RequestError: the prompt is not valid Unicode.
        """
        tokens = [token for part in self._encode(prompt) for token in zip(part.offsets, part.ids, strict=True)]
        spans = [span for span, number in tokens if number == self._unknown]
        words: dict[str, str] = {}
        for start, end in spans:
            word = _word_at(prompt, start, end)
            words.setdefault(word.casefold(), word)
        return [word for word in words.values() if word]

    def _encode(self, prompt: str) -> list[Encoding]:
        """A prompt's tokens in parts of at most as many as the model reads."""
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise RequestError("prompt: has bytes that are not UTF-8", "prompt") from None
        try:
            with contain_panics():
                encoding = self._tokenizer.encode(prompt)
        except RuntimeError as error:
            raise EngineError(f"the tokenizer: {error}") from error
        return [encoding, *encoding.overflowing]

    def _cross_attention(self, states: Array, mask: Array, scale: float | None) -> CrossAttentionKV:
        extra_inputs = {} if scale is None else {"guidance": np.array([scale], np.float32)}
        names = [value.name for value in self._cross.get_outputs()]
        values = self._cross.run(None, {"text_states": states, "text_mask": mask, **extra_inputs})
        arrays = dict(zip(names, values, strict=True))
        layers = len(names) // 2
        order = [f"cross_{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]
        return CrossAttentionKV([arrays[name][0] for name in order], mask[0])


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of a tokenizer's unknown token; None if it has none, as byte-level ones."""
    model = json.loads(tokenizer.to_str())["model"]
    number: int | None = model.get("unk_id")  # Unigram; the other kinds name the token
    return number if model.get("unk_token") is None else tokenizer.token_to_id(model["unk_token"])


def _word_at(text: str, start: int, end: int) -> str:
    """The word that contains the characters from `start` to `end`; empty for punctuation."""
    if not text[start:end].isalnum():
        symbols = text[start:end].strip()
        return "" if all(unicodedata.category(one).startswith("P") for one in symbols) else symbols
    while start > 0 and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum():
        end += 1
    return text[start:end].strip()

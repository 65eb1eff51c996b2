"""A causal language model in ONNX Runtime, with its cache: prefill, continuation of a common prefix, decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tinymusician.errors import EngineError
from tinymusician.runtime.audio_lm_bundle import AudioLMArchitecture
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.session import Array, Session
from tinymusician.runtime.softmax import log_softmax

Floats = npt.NDArray[np.float32]


class LMState(NamedTuple):
    """The cache of keys and values by the name of their input, and the next token's logits [B, V]."""

    cache: dict[str, Array]
    logits: Floats


class LanguageModel:
    """The `lm` graph of a bundle."""

    def __init__(self, session: Session, shape: AudioLMArchitecture) -> None:
        self._session, self._shape = session, shape
        self._outputs = [value.name for value in session.get_outputs()]

    def prefill_audio(self, embeddings_BTW: Floats) -> LMState:
        """Read clips and the separator after them."""
        batch, shape = len(embeddings_BTW), self._shape
        empty = np.zeros((batch, shape.key_value_heads, 0, shape.head_width), np.float32)
        cache = {f"past_{kind}.{layer}": empty for layer in range(shape.layers) for kind in ("key", "value")}
        return self._run(embeddings_BTW, np.full((batch, 1), shape.end, np.int64), cache)

    def prefill_text(self, state: LMState, ids: Sequence[int]) -> LMState:
        """Read the same tokens after every row of a state."""
        return self._extend(state, np.tile(np.array(ids, np.int64), (len(state.logits), 1)))

    def log_likelihoods(self, state: LMState, texts: Sequence[Sequence[int]]) -> Floats:
        """The log-likelihood of each text's tokens after each row of a state, [B, texts]."""
        rows, count = len(state.logits), len(texts)
        each = LMState({name: np.repeat(value, count, 0) for name, value in state.cache.items()}, state.logits)
        longest = max(map(len, texts))
        totals = np.zeros((rows, count), np.float32)
        logits = np.repeat(state.logits, count, 0)
        for depth in range(longest):
            column = np.array([text[depth] if depth < len(text) else self._shape.end for text in texts], np.int64)
            log = log_softmax(logits)[np.arange(rows * count), np.tile(column, rows)].reshape(rows, count)
            totals += np.where([depth < len(text) for text in texts], log, 0).astype(np.float32)
            if depth + 1 < longest:
                each = self._extend(each, np.tile(column, rows)[:, None])
                logits = each.logits
        return totals

    def generate(self, state: LMState, limit: int) -> list[int]:
        """The most probable tokens after the first row of a state, up to the end token."""
        tokens: list[int] = []
        state = LMState({name: value[:1] for name, value in state.cache.items()}, state.logits[:1])
        while len(tokens) < limit and (token := int(state.logits[0].argmax())) != self._shape.end:
            tokens.append(token)
            state = self._extend(state, np.array([[token]], np.int64))
        return tokens

    def _extend(self, state: LMState, ids_BL: Array) -> LMState:
        return self._run(np.zeros((len(ids_BL), 0, self._shape.width), np.float32), ids_BL, state.cache)

    def _run(self, embeddings: Floats, ids: Array, cache: dict[str, Array]) -> LMState:
        try:
            values = self._session.run(None, {"embeddings": embeddings, "ids": ids, **cache})
        except Exception as error:  # ONNX Runtime's exceptions
            raise as_engine_error("the language model", error) from error
        outputs = dict(zip(self._outputs, values, strict=True))
        logits = outputs.pop("logits")
        if not np.isfinite(logits).all():
            raise EngineError("the language model: its logits are not finite; the bundle is damaged")
        return LMState({name.replace("present", "past"): value for name, value in outputs.items()}, logits)

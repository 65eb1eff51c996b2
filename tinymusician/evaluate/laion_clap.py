"""laion-clap's CLAP, with a local checkpoint and tokenizer, in fixed windows of ten seconds.

This file runs in laion-clap's environment (infra/environments), with few other packages. On import, laion-clap requests
three tokenizers and a text encoder from the hub: the local tokenizer replaces all of them, and the text encoder's
weights come with the checkpoint. It would crop clips longer than ten seconds at random: it never gets one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tinymusician.evaluate.clip_embeddings import Floats
from tinymusician.evaluate.embedding import split_by_clip, windows
from tinymusician.json_types import JsonObject

RATE, SECONDS = 48_000, 10
_BATCH = 16
_ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


class LaionClap:
    """Audio and text in the space of a checkpoint, each vector of length one."""

    def __init__(self, checkpoint: str, tokenizer: str, audio_model: str) -> None:
        """`tokenizer` is a folder with RoBERTa's vocab.json and merges.txt; `audio_model` HTSAT-tiny or HTSAT-base."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = new_module(tokenizer, audio_model, device)
        self._model.load_ckpt(checkpoint, verbose=False)
        self._model.eval()
        with Path(checkpoint).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._facts = {"kind": "laion-clap", "weights": digest, "model": audio_model, "window": SECONDS * RATE}

    def facts(self) -> JsonObject:
        """What its vectors depend on."""
        return self._facts

    def audio(self, waves: Sequence[Floats]) -> list[Floats]:
        """Vectors [windows, D] of every wave, mono at 48 kHz; rounded to 16 bits, as the package does with files."""
        clips = [windows(_sixteen_bits(wave), SECONDS * RATE) for wave in waves]
        joined = np.concatenate(clips)
        embeddings = [
            self._model.get_audio_embedding_from_data(x=joined[start : start + _BATCH], use_tensor=False)
            for start in range(0, len(joined), _BATCH)
        ]
        return split_by_clip(np.concatenate(embeddings), clips)

    def text(self, prompts: Sequence[str]) -> Floats:
        """A vector for every prompt, [N, D]."""
        embeddings = []
        for start in range(0, len(prompts), _BATCH):
            words = list(prompts[start : start + _BATCH])
            several = [*words, words[0]]  # the package fails on a single prompt
            embeddings.append(self._model.get_text_embedding(several)[: len(words)])
        return np.concatenate(embeddings)


def new_module(tokenizer: str, audio_model: str, device: str) -> Any:
    """A CLAP_Module with random weights, without any request to the hub."""
    import transformers

    folder = Path(tokenizer)
    local = transformers.RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    empty = transformers.RobertaModel(transformers.RobertaConfig(**_ROBERTA))
    with ExitStack() as changed:
        for name in ("BertTokenizer", "RobertaTokenizer", "BartTokenizer"):
            changed.enter_context(patch.object(getattr(transformers, name), "from_pretrained", lambda *_, **__: local))
        changed.enter_context(patch.object(transformers.RobertaModel, "from_pretrained", lambda *_, **__: empty))
        import laion_clap

        return laion_clap.CLAP_Module(enable_fusion=False, device=device, amodel=audio_model)


def _sixteen_bits(wave: Floats) -> Floats:
    """Rounded towards zero, like files that laion-clap reads."""
    return np.asarray((np.clip(wave, -1, 1) * 32767).astype(np.int16) / 32767, np.float32)

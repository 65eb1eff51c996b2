"""Converts a Llama in a GGUF file, as llama.cpp reads it, into a folder in transformers' layout.

transformers reads the weights. Its tokenizer for GGUF files joins digits, where SmolLM's reads them one by one, so the
tokenizer is built here from the file's tokens and merges. transformers gives random values to tensors that a file
lacks, and ignores what it does not know; so keys and tensors of the file are compared with those of a plain Llama.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tinymusician.errors import ModelError, contain_panics, first_line
from tinymusician.json_types import JsonObject
from tinymusician.models.checkpoint_files import TOKENIZER
from tinymusician.models.pretrained_lm import load_language_model

_CONTROL = 3
"""The type of tokens that no text contains."""
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
_PRE_TOKENIZERS = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTE_LEVEL]),
    "gpt-2": _BYTE_LEVEL,
}
"""How texts are split before merges, by llama.cpp's names of the rules (llama-vocab.cpp)."""
_COUNTS = (
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
)
_NUMBERS = ("llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base")
_DERIVED = ("llama.vocab_size", "llama.rope.dimension_count")
"""Keys that follow from the others; the shapes of the tensors show whether they do."""
_LAYER_TENSORS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)


class GgufFacts(NamedTuple):
    """What a file says of itself by key, and the names of its tensors."""

    values: JsonObject
    tensors: frozenset[str]


def convert_gguf(file: Path, to: Path) -> int:
    """Write config.json, model.safetensors (float16) and tokenizer.json into a folder; returns the parameters' number.

    Raises:
        ModelError: the file is no GGUF file of a plain Llama with tied embeddings and a byte-level tokenizer.
        ModuleNotFoundError: gguf is not installed.
    """
    try:
        facts = _read_facts(file)
        _check_plain(facts)
        tokenizer = _tokenizer(facts.values)
        count = _convert_weights(file, facts.values["tokenizer.ggml.eos_token_id"], to)
    except _UnusableError as error:
        raise ModelError(f"model {str(file)!r}: {error}") from error
    tokenizer.save(str(to / TOKENIZER))
    load_language_model(str(to))  # refuses weights that are no numbers, and tokens that it has none for
    return count


class _TokenizerFacts(BaseModel):
    """The keys of a byte-level tokenizer."""

    model_config = ConfigDict(strict=True)

    tokens: list[str]
    token_type: list[int]
    merges: list[str]
    eos_token_id: int

    @field_validator("tokens")
    @classmethod
    def _are_different(cls, tokens: list[str]) -> list[str]:
        if len(set(tokens)) < len(tokens):
            raise ValueError("a token is there twice")
        return tokens


class _UnusableError(Exception):
    """Why a file is not converted."""


def _read_facts(file: Path) -> GgufFacts:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        values = {name: field.contents() for name, field in reader.fields.items()}
        return GgufFacts(values, frozenset(tensor.name for tensor in reader.tensors))
    except OSError as error:
        raise _UnusableError(f"cannot be read ({error.strerror})") from error
    except Exception as error:  # the reader checks little: NumPy's errors of many types
        raise _UnusableError(f"is no GGUF file, or is cut off ({first_line(error)})") from error


def _check_plain(facts: GgufFacts) -> None:
    """Check that a file has all keys and tensors of a Llama with tied embeddings, and no others."""
    values = facts.values
    if (architecture := values.get("general.architecture")) != "llama":
        raise _UnusableError(f"general.architecture = {architecture!r}; 'llama' is needed")
    for key in _COUNTS:
        if not isinstance(value := values.get(key), int) or not 0 < value < 1 << 24:
            raise _UnusableError(f"{key} = {value!r}; a positive whole number is needed")
    for key in _NUMBERS:
        if not isinstance(value := values.get(key), int | float) or not 0 < value < math.inf:
            raise _UnusableError(f"{key} = {value!r}; a positive number is needed")
    settings = {key for key in values if key.startswith(("llama.", "split."))}
    if unknown := settings - {*_COUNTS, *_NUMBERS, *_DERIVED}:
        raise _UnusableError(f"{min(unknown)} is set, which a plain Llama has not")
    layers = range(values["llama.block_count"])
    needed = {f"blk.{layer}.{name}.weight" for layer in layers for name in _LAYER_TENSORS}
    needed |= {"token_embd.weight", "output_norm.weight"}
    if missing := needed - facts.tensors:
        raise _UnusableError(f"{len(missing)} of {len(needed)} tensors are missing, such as {min(missing)}")
    if unexpected := facts.tensors - needed:
        raise _UnusableError(f"has tensors that a Llama with tied embeddings has not, such as {min(unexpected)}")


def _tokenizer(values: Mapping[str, object]) -> Tokenizer:
    if (kind := values.get("tokenizer.ggml.model")) != "gpt2":
        raise _UnusableError(f"tokenizer.ggml.model = {kind!r}; 'gpt2', a byte-level tokenizer, is needed")
    pre = str(values.get("tokenizer.ggml.pre"))
    if pre not in _PRE_TOKENIZERS:
        raise _UnusableError(f"tokenizer.ggml.pre = {pre!r}: only {', '.join(_PRE_TOKENIZERS)} are converted")
    try:
        facts = _TokenizerFacts.model_validate(
            {name: values.get(f"tokenizer.ggml.{name}") for name in _TokenizerFacts.model_fields}
        )
        pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in facts.merges)]
        kinds = zip(facts.tokens, facts.token_type, strict=True)
        special = [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == _CONTROL]
        with contain_panics():
            tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(facts.tokens)}, pairs))
            tokenizer.add_special_tokens(special)
    except ValidationError as error:
        problem = error.errors()[0]
        raise _UnusableError(f"tokenizer.ggml.{problem['loc'][0]}: {problem['msg']}") from error
    except Exception as error:  # the library raises no narrower one
        raise _UnusableError(f"its tokens do not fit together ({first_line(error)})") from error
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _convert_weights(file: Path, end: int, to: Path) -> int:
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:  # transformers also reads what lies beside the file
            (Path(folder) / "model.gguf").symlink_to(file.absolute())
            model = LlamaForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    except Exception as error:  # transformers and gguf raise many types for damaged files
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise _UnusableError(f"its tensors cannot be read ({reason})") from error
    model.config.eos_token_id = end
    model.half().save_pretrained(to)
    return sum(int(parameter.numel()) for parameter in model.parameters())

"""Converts a Llama in a GGUF file, as llama.cpp reads it, into a folder in transformers' layout.

transformers reads the weights. Its tokenizer for GGUF files joins digits, where SmolLM's reads them one by one, so the
tokenizer is built here from the file's tokens and merges.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tinymusician.errors import ModelError, contain_panics, first_line
from tinymusician.json_types import JsonObject
from tinymusician.models.checkpoint_files import TOKENIZER

_CONTROL = 3
"""The type of tokens that no text contains."""
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
_PRE_TOKENIZERS = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTE_LEVEL]),
    "gpt-2": _BYTE_LEVEL,
}
"""How texts are split before merges, by llama.cpp's names of the rules (llama-vocab.cpp)."""


class GgufFacts(NamedTuple):
    """What a file says of itself, and the tokens with their merges."""

    architecture: str
    pre_tokenizer: str
    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    end: int


def convert_gguf(file: Path, to: Path) -> int:
    """Write config.json, model.safetensors (float16) and tokenizer.json into a folder; returns the parameters' number.

    Raises:
        ModelError: the file is no GGUF file of a Llama with a byte-level tokenizer.
        ModuleNotFoundError: gguf is not installed.
    """
    facts = _read_facts(file)
    if facts.architecture != "llama":
        raise ModelError(f"model {str(file)!r}: is of the architecture {facts.architecture!r}; llama is needed")
    tokenizer = _tokenizer(facts, file)
    count = _convert_weights(file, facts.end, to)
    tokenizer.save(str(to / TOKENIZER))
    return count


def _read_facts(file: Path) -> GgufFacts:
    from gguf import GGUFReader

    try:
        fields: JsonObject = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
        return GgufFacts(
            architecture=fields["general.architecture"],
            pre_tokenizer=fields.get("tokenizer.ggml.pre", "default"),
            tokens=fields["tokenizer.ggml.tokens"],
            token_types=fields["tokenizer.ggml.token_type"],
            merges=fields["tokenizer.ggml.merges"],
            end=fields["tokenizer.ggml.eos_token_id"],
        )
    except KeyError as error:
        raise ModelError(f"model {str(file)!r}: has no {error.args[0]}; a byte-level tokenizer is needed") from error
    except OSError as error:
        raise ModelError(f"model {str(file)!r}: cannot be read ({error.strerror})") from error
    except (ValueError, IndexError) as error:
        raise ModelError(f"model {str(file)!r}: is no GGUF file ({first_line(error)})") from error


def _tokenizer(facts: GgufFacts, file: Path) -> Tokenizer:
    if facts.pre_tokenizer not in _PRE_TOKENIZERS:
        allowed = ", ".join(_PRE_TOKENIZERS)
        raise ModelError(
            f"model {str(file)!r}: tokenizer.ggml.pre = {facts.pre_tokenizer!r}: only {allowed} are converted"
        )
    try:
        merges = [(left, right) for left, right in (merge.split(" ", 1) for merge in facts.merges)]
        vocabulary = {token: index for index, token in enumerate(facts.tokens)}
        pairs = zip(facts.tokens, facts.token_types, strict=True)
        special = [AddedToken(token, special=True, normalized=False) for token, kind in pairs if kind == _CONTROL]
        with contain_panics():
            tokenizer = Tokenizer(models.BPE(vocabulary, merges))
            tokenizer.add_special_tokens(special)
    except Exception as error:  # the library raises no narrower one
        raise ModelError(f"model {str(file)!r}: its tokens do not fit together ({first_line(error)})") from error
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[facts.pre_tokenizer]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _convert_weights(file: Path, end: int, to: Path) -> int:
    from transformers import LlamaForCausalLM

    try:
        with tempfile.TemporaryDirectory() as folder:  # transformers also reads what lies beside the file
            (Path(folder) / "model.gguf").symlink_to(file.absolute())
            model = LlamaForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    except Exception as error:  # transformers and gguf raise many types for damaged files
        raise ModelError(f"model {str(file)!r}: cannot be read ({first_line(error)})") from error
    model.config.eos_token_id = end
    model.half().save_pretrained(to)
    return sum(int(parameter.numel()) for parameter in model.parameters())

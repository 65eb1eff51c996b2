"""Reads tokenizers, also those that transformers 5 saved."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from tinymusician.errors import ModelError, first_line
from tinymusician.json_types import JsonObject
from tinymusician.models.protocols import Tokenizer

MAX_TEXT_TOKENS = 512
"""The number of tokens of the texts that T5 was trained on."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_tokenizer(name: str, folder: Path) -> Tokenizer:
    """The tokenizer in a model's folder; with `truncation` it cuts texts where bundles of the model do.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    try:
        file = folder / "tokenizer_config.json"
        config: JsonObject = json.loads(file.read_text("utf-8-sig")) if file.is_file() else {}
        is_new = _is_from_transformers_5(config)
        tokenizer: Tokenizer = _read_backend(folder, config) if is_new else AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise OSError, ValueError, bare Exception and others
        raise ModelError(f"model {name!r}: its tokenizer cannot be loaded ({first_line(error)})") from error
    tokenizer.model_max_length = min(tokenizer.model_max_length, MAX_TEXT_TOKENS)
    return tokenizer


def _is_from_transformers_5(config: JsonObject) -> bool:
    """Whether transformers 4 cannot read a tokenizer's configuration."""
    return config.get("tokenizer_class") == "TokenizersBackend" or isinstance(config.get("extra_special_tokens"), list)


def _read_backend(folder: Path, config: JsonObject) -> Tokenizer:
    """The tokenizer of tokenizer.json, which says all but the roles of the special tokens."""
    special = {key: _token(config[key]) for key in _SPECIAL_TOKENS if config.get(key) is not None}
    length = {"model_max_length": config["model_max_length"]} if config.get("model_max_length") else {}
    extra = config.get("extra_special_tokens") or []
    tokenizer: Tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        additional_special_tokens=[_token(token) for token in (extra.values() if isinstance(extra, dict) else extra)],
        model_input_names=["input_ids", "attention_mask"],
        **special,
        **length,
    )
    return tokenizer


def _token(token: str | JsonObject) -> str | AddedToken:
    """A token as text, or with the properties of an `AddedToken` as JSON writes them."""
    if isinstance(token, str):
        return token
    return AddedToken(**{name: value for name, value in token.items() if not name.startswith("__")})

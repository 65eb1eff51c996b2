"""Language models from elsewhere that answer questions: Llamas in transformers' layout, such as SmolLM2."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tinymusician.errors import ModelError, first_line
from tinymusician.json_types import JsonObject
from tinymusician.models.audio_lm import LanguageModelShape
from tinymusician.models.checkpoint_files import TOKENIZER, read_json, read_tokenizer
from tinymusician.models.hub import download
from tinymusician.models.pretrained import load_pretrained
from tinymusician.models.shape import local_model_folder

_NEEDED: JsonObject = {
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
}
"""What a configuration must say: other Llamas compute something else than the bundle's graph."""
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


class PretrainedLM(NamedTuple):
    """A language model's shape, its weights by the names of `LlamaForCausalLM`, and its tokenizer."""

    shape: LanguageModelShape
    weights: dict[str, Tensor]
    tokenizer: Tokenizer


def load_language_model(name: str) -> PretrainedLM:
    """Load a folder, an artifact or a hub model in float32; separator and end of answers are its end token.

    Raises:
        ModelError: it does not exist, is no Llama with tied embeddings and a tokenizer.json, or is damaged.
    """
    folder = local_model_folder(name) or download(name)
    shape = llama_shape(read_json(folder / "config.json", name), name)
    model = load_pretrained(LlamaForCausalLM, name, folder)
    tokenizer = read_tokenizer(folder, name)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.num_special_tokens_to_add(is_pair=False):
        raise ModelError(f"model {name!r}: {TOKENIZER} adds special tokens to every text; remove its post_processor")
    if (tokens := tokenizer.get_vocab_size()) > shape.vocabulary:
        raise ModelError(f"model {name!r}: {TOKENIZER} has {tokens} tokens, and the model {shape.vocabulary}")
    weights = {key: value.detach().to(torch.float32) for key, value in model.state_dict().items()}
    return PretrainedLM(shape, weights, tokenizer)


def llama_shape(content: JsonObject, name: str) -> LanguageModelShape:
    """The shape in the config.json of the model `name`.

    Raises:
        ModelError: it is of another kind of model.
    """
    if content.get("model_type") != "llama":
        raise ModelError(f"language model {name!r}: is of type {content.get('model_type')!r}; llama is needed")
    config = _checked_config(content, name)
    given = content.get("eos_token_id")
    end = given[0] if isinstance(given, list) and given else given
    if not isinstance(end, int) or not 0 <= end < config.vocab_size:
        raise ModelError(
            f"language model {name!r}: eos_token_id = {given!r}; a token of its {config.vocab_size} is needed"
        )
    return LanguageModelShape(
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        feed_forward=config.intermediate_size,
        rope_theta=config.rope_theta,
        positions=config.max_position_embeddings,
        norm_epsilon=config.rms_norm_eps,
        end=end,
    )


def _checked_config(content: JsonObject, name: str) -> LlamaConfig:
    """The configuration of a plain Llama, whose sizes fit together."""
    try:
        config = LlamaConfig.from_dict(content)
    except Exception as error:  # transformers raises KeyError, TypeError and others for values of other types
        raise ModelError(f"language model {name!r}: config.json is damaged ({first_line(error)})") from error
    for key in _SIZES:
        if not isinstance(value := getattr(config, key), int) or not 0 < value < 1 << 24:
            raise ModelError(f"language model {name!r}: {key} = {value!r}; a positive whole number is needed")
    for key in ("rope_theta", "rms_norm_eps"):
        if not isinstance(value := getattr(config, key), int | float) or not 0 < value < math.inf:
            raise ModelError(f"language model {name!r}: {key} = {value!r}; a positive number is needed")
    for key, needed in _NEEDED.items():
        if (value := getattr(config, key)) != needed:
            raise ModelError(f"language model {name!r}: {key} = {value!r}; {needed!r} is needed")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ModelError(
            f"language model {name!r}: num_key_value_heads = {config.num_key_value_heads}; they must divide "
            f"num_attention_heads = {config.num_attention_heads}"
        )
    if config.head_dim != config.hidden_size // config.num_attention_heads:
        raise ModelError(
            f"language model {name!r}: head_dim = {config.head_dim}; hidden_size / num_attention_heads is needed"
        )
    return config

"""Converts a folder of a model into transformers' layout with safetensors: pickled weights, LoRA, SentencePiece."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from tinymusician.errors import ModelError, first_line
from tinymusician.models.audiocraft import convert as convert_release
from tinymusician.models.checkpoint_files import (
    ADAPTER,
    PICKLED,
    PICKLED_INDEX,
    SENTENCEPIECE,
    TOKENIZER,
    WEIGHTS_FILE,
    files_of_index,
    has_weights,
    read_json,
)
from tinymusician.models.shape import is_release

_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def convert_checkpoint(source: Path, to: Path, base: str | None = None) -> list[str]:
    """Write a model into a new folder in the layout that this code loads; returns a line for each thing that it did.

    `base` is the model of a LoRA adapter, by default the one that the adapter names.

    Raises:
        ModelError: there is nothing to convert, or it cannot be read.
        ModuleNotFoundError: what is needed is not installed: peft or sentencepiece.
    """
    if is_release(source):
        convert_release(source, to)
        return ["audiocraft's release is in transformers' layout"]
    if (source / ADAPTER).is_file():
        return [_merge_adapter(source, to, base)]
    done = []
    to.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith((".", PICKLED.removesuffix(".bin"))):
            shutil.copy(file, to / file.name)
    if not has_weights(source) and _pickled_files(source):
        count = _convert_pickled(source, to / WEIGHTS_FILE)
        done.append(f"{count} tensors are safetensors")
    if (source / SENTENCEPIECE).is_file() and not (source / TOKENIZER).is_file():
        _convert_tokenizer(source, to)
        done.append(f"the tokenizer is {TOKENIZER}")
    if not done:
        raise ModelError(f"model {str(source)!r}: has nothing to convert")
    return done


def _merge_adapter(source: Path, to: Path, base: str | None) -> str:
    """Add a LoRA adapter's products to the weights of its base model."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    from tinymusician.models.musicgen import load_musicgen, load_tokenizer
    from tinymusician.models.saving import save_musicgen

    config = read_json(source / ADAPTER, str(source))
    name = base or config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"LoRA adapter {str(source)!r}: {ADAPTER} names no base model; give it with --base")
    if not (source / _ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"LoRA adapter {str(source)!r}: has no {_ADAPTER_WEIGHTS}; save it again with peft 0.6 or newer"
        )
    if not base and config.get("revision") and "/" in name and "@" not in name:
        name = f"{name}@{config['revision']}"
    try:
        adapted = PeftModel.from_pretrained(load_musicgen(name), source)
        with safe_open(source / _ADAPTER_WEIGHTS, "pt") as file:
            actual = set(file.keys())
    except ModelError:
        raise
    except Exception as error:  # peft raises many types for an adapter of another model
        raise ModelError(f"LoRA adapter {str(source)!r}: does not fit {name!r} ({first_line(error)})") from error
    if different := actual ^ set(get_peft_model_state_dict(adapted)):
        raise ModelError(
            f"LoRA adapter {str(source)!r}: does not fit {name!r}: {len(different)} tensors differ, such as "
            f"{min(different)}"
        )
    save_musicgen(to, adapted.merge_and_unload(), load_tokenizer(name))
    return f"the adapter's {len(actual)} tensors are merged into {name}"


def _pickled_files(source: Path) -> list[str]:
    if (source / PICKLED_INDEX).is_file():
        return files_of_index(source / PICKLED_INDEX, str(source))
    return [PICKLED] if (source / PICKLED).is_file() else []


def _convert_pickled(source: Path, to: Path) -> int:
    """Write tensors as safetensors, one of several that share their memory; returns their number."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name in _pickled_files(source):
        try:
            content = torch.load(source / name, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises OSError, EOFError, RuntimeError, UnpicklingError and others
            raise ModelError(f"model {str(source)!r}: {name} is no file of tensors ({first_line(error)})") from error
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]  # as trainers save it, beside their own state
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise ModelError(f"model {str(source)!r}: {name} is no file of tensors alone")
        tensors |= content
    unique = {
        (tensor.data_ptr() or name, tensor.dtype, tensor.shape): name for name, tensor in reversed(tensors.items())
    }
    tensors_to_save = {name: tensors[name].contiguous() for name in sorted(unique.values())}
    save_file(tensors_to_save, to, metadata={"format": "pt"})
    return len(tensors_to_save)


def _convert_tokenizer(source: Path, to: Path) -> None:
    import sentencepiece  # noqa: F401  # transformers' message about its absence is long
    from transformers import T5TokenizerFast

    try:
        T5TokenizerFast.from_pretrained(source).save_pretrained(to)
    except Exception as error:  # transformers and tokenizers raise OSError, ValueError, bare Exception and others
        raise ModelError(f"model {str(source)!r}: {SENTENCEPIECE} is damaged ({first_line(error)})") from error

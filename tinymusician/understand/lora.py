"""Low-rank adapters of a language model's queries and values (LoRA, arXiv 2106.09685), by peft.

They are the setting of TinyMU's ablation (arXiv 2604.15849): rank 32, alpha 128.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from tinymusician.models.audio_lm import AudioLM

_TARGETS = ("q_proj", "v_proj")
_PARTS = ("lora_A", "lora_B")
"""peft's names of the two factors beside a layer."""


class AdapterConfig(NamedTuple):
    """The rank of the products, and alpha: a product counts alpha / rank."""

    rank: int
    alpha: float


def add_adapters(model: AudioLM, settings: AdapterConfig) -> None:
    """Give the language model adapters that begin at zero, in place; its other weights are frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(_TARGETS))
    inject_adapter_in_model(config, model.lm)


def adapters(model: AudioLM) -> nn.ModuleList:
    """The adapters' modules, in the order of the layers; empty without adapters."""
    return nn.ModuleList(module for name, module in model.lm.named_modules() if name.rpartition(".")[2] in _PARTS)


def merge_adapters(model: AudioLM) -> None:
    """Add the products to the weights beside them, and remove the adapters, in place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.lm.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())

"""Loads models in transformers' layout; every weight must come from their files, and be finite."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from tinymusician.errors import ModelError, first_line
from tinymusician.json_types import JsonObject
from tinymusician.models.checkpoint_files import check_keys
from tinymusician.models.protocols import Model

_COMPUTED = re.compile(r"(^|\.)(embed_positions\.weights|position_ids|num_batches_tracked)$")
"""Buffers in older checkpoints that transformers computes now."""


M_co = TypeVar("M_co", bound=Model, covariant=True)


class PretrainedClass(Protocol[M_co]):
    """One of transformers' classes of models."""

    def from_pretrained(self, folder: str | Path, **options: object) -> tuple[M_co, JsonObject]:
        """With `output_loading_info`: the model, and which tensors were missing, unexpected or mismatched."""


def load_pretrained(kind: PretrainedClass[M_co], name: str, folder: str | Path, ignored: str | None = None) -> M_co:
    """Load a model of one of transformers' classes, in float32 and evaluation mode, from safetensors only.

    `ignored` is a pattern for the names of tensors that this class does not use, such as a T5's decoder.

    Raises:
        ModelError: its files cannot be read, a tensor is missing, unexpected or of another shape, or not finite.
    """
    reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **reporting)
    except Exception as error:  # transformers raises OSError, ValueError, SafetensorError and others for bad files
        raise ModelError(f"model {name!r}: cannot be loaded ({first_line(error)})") from error
    unexpected = {
        key
        for key in report["unexpected_keys"]
        if not (_COMPUTED.search(key) or (ignored is not None and re.match(ignored, key)))
    }
    mismatched = {key: (actual, needed) for key, actual, needed in report["mismatched_keys"]}
    check_keys(name, len(model.state_dict()), set(report["missing_keys"]), unexpected, mismatched)
    check_finite(name, model)
    model.eval()
    return model


def check_finite(name: str, model: Model) -> None:
    """Check that a model has no NaN and no infinity among its weights.

    Raises:
        ModelError: it has; the message names the first tensor.
    """
    for key, tensor in model.state_dict().items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise ModelError(f"model {name!r}: {bad} of {tensor.numel()} weights of {key} are not finite numbers")

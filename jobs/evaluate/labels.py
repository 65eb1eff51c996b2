"""The models of an evaluation: their ids in the recipe, and their labels in reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jobs.worker.model_refs import SPECIAL_MODELS, parse_label
from tinymusician.evaluate.results import REAL, RECONSTRUCTED


def short_label(model_id: str) -> str:
    """The label that the recipe gives a model (`LABEL=REF`), or a short form of its reference."""
    label, reference = parse_label(model_id)
    if label:
        return label
    if reference in (*SPECIAL_MODELS, REAL, RECONSTRUCTED):
        return reference
    name, _, digest = reference.partition("@sha256:")
    return f"{name}@{digest[:8]}" if digest else Path(reference).name


def labels(model_ids: Sequence[str]) -> dict[str, str]:
    """The label of every model: the short one, or the full id where models or real clips would share the short one."""
    times = Counter([REAL, RECONSTRUCTED, *(short_label(model_id) for model_id in model_ids)])
    return {
        model_id: short_label(model_id) if times[short_label(model_id)] == 1 else model_id for model_id in model_ids
    }

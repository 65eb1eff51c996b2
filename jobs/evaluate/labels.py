"""The models of an evaluation: their ids in the recipe, and their labels in reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jobs.worker.model_refs import SPECIAL_MODELS, parse_label
from tinymusician.evaluate.results import REAL, RECONSTRUCTED

_DIGEST = re.compile(r"@(?:sha256:)?([0-9a-f]{8})[0-9a-f]*$")
"""The digest of an artifact, or the commit of a hub model; its first eight digits are shown."""


def short_label(model_id: str) -> str:
    """The label that the recipe gives a model (`LABEL=REF`), or a short form of its reference."""
    label, reference = parse_label(model_id)
    if label:
        return label
    if reference in (*SPECIAL_MODELS, REAL, RECONSTRUCTED):
        return reference
    short = _DIGEST.sub(lambda match: f"@{match[1]}", reference)
    return short if "@sha256:" in reference else Path(short).name


def labels(model_ids: Sequence[str]) -> dict[str, str]:
    """The label of every model: the short one, or the full id where models or real clips would share the short one."""
    times = Counter([REAL, RECONSTRUCTED, *(short_label(model_id) for model_id in model_ids)])
    return {
        model_id: short_label(model_id) if times[short_label(model_id)] == 1 else model_id for model_id in model_ids
    }

"""A report's figures of a model of which nothing can be heard."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from jobs.evaluate.report import ClipFeatures, distribution_metrics, mean_difference
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.recipe import EvaluateConfig


def test_model_with_non_finite_audio_is_reported() -> None:
    random = np.random.default_rng(0)
    positions, vectors = np.arange(30), ClipEmbeddings.of(list(random.normal(size=(30, 2, 4))))
    classes = {"key": random.dirichlet(np.ones(3), 30)}
    real = ClipFeatures(positions, vectors, vectors, classes, None, Counter())
    nothing = ClipEmbeddings(np.zeros((0, 4)), np.zeros(0, np.int64))
    features = ClipFeatures(positions[:0], nothing, nothing, {"key": classes["key"][:0]}, None, Counter())
    evaluation: Any = SimpleNamespace(config=EvaluateConfig(clips=30, resamples=20))
    result = distribution_metrics(evaluation, features, real, random.normal(size=(30, 4)))
    assert result["clips"] == 0
    assert result["fad"] is result["fad_infinity"] is result["kad"] is None
    assert np.isnan(result["clap"]["score"].value)
    assert result["labels"] == {}
    assert "not one of its clips is sound, see the degenerate ones" in result["notes"]
    assert mean_difference(np.full(30, np.nan), np.ones(30), 0) is None
    sound = distribution_metrics(evaluation, real, real, random.normal(size=(30, 4)))
    assert sound["fad"].value < 1e-9
    assert sound["labels"]["key"]["agreement"].value == 1

"""The metrics of a set of clips, and of one of which no clip is finite."""

from __future__ import annotations

import numpy as np
import torch

from tinymusician.evaluate.aggregate import ClipFeatures, agreement_metrics, clap_scores, distribution_metrics
from tinymusician.evaluate.agreement import agreement
from tinymusician.evaluate.bootstrap import paired_difference
from tinymusician.evaluate.clap_score import clap_by_clip
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.evaluate.reference_statistics import ReferenceStatistics


def features(clips: int, classes: bool = True) -> ClipFeatures:
    random = np.random.default_rng(0)
    vectors = ClipEmbeddings.of(list(random.normal(size=(clips, 2, 4))))
    labels = {"key": random.dirichlet(np.ones(3), clips)} if classes else {}
    return ClipFeatures(np.arange(clips), vectors, vectors, labels)


def without_clips(like: ClipFeatures) -> ClipFeatures:
    nothing = ClipEmbeddings(np.zeros((0, 4)), np.zeros(0, np.int64))
    return ClipFeatures(like.indices[:0], nothing, nothing, {"key": like.classes["key"][:0]})


def test_model_with_non_finite_audio_is_reported() -> None:
    prompts, real = np.random.default_rng(1).normal(size=(30, 4)), features(30)
    statistics = ReferenceStatistics.of(real.embeddings)
    result = distribution_metrics(without_clips(real), statistics, real, prompts, seed=0, resamples=20)
    assert result.clips == 0
    assert result.fad is result.fad_infinity is result.kad is None
    assert result.clap is None
    assert result.labels == {}
    assert "no clip is finite; see the degenerate clips" in result.notes
    assert paired_difference(np.full(30, np.nan), np.ones(30)) is None


def test_a_set_compared_with_itself() -> None:
    prompts, real = np.random.default_rng(1).normal(size=(30, 4)), features(30)
    statistics = ReferenceStatistics.of(real.embeddings)
    result = distribution_metrics(real, statistics, real, prompts, seed=0, resamples=20)
    assert result.fad is not None
    assert result.fad.value < 1e-9
    assert result.labels["key"].agreement.value == 1
    scores = clap_scores(real.at(np.array([2, 5])), prompts)
    assert np.flatnonzero(np.isfinite(scores)).tolist() == [2, 5]
    assert scores[5] == np.round(clap_scores(real, prompts)[5], 5)


def test_clips_without_captions_have_no_clap_score() -> None:
    """The score is of those that have one; without pairs of the same prompt there are no labels."""
    prompts, clips = np.random.default_rng(1).normal(size=(30, 4)), features(30)
    statistics = ReferenceStatistics.of(clips.embeddings)
    prompts[5:] = np.nan
    some = distribution_metrics(clips, statistics, None, prompts, seed=0, resamples=20)
    assert some.clap is not None
    assert some.clap.score.value == np.mean(clap_by_clip(clips.clap.select(np.arange(5)), prompts[:5]))
    assert some.labels == {}
    assert distribution_metrics(clips, statistics, None, np.full((30, 1), np.nan), 0, 20).clap is None


def test_agreement_is_joined_over_groups() -> None:
    """Means of means over codebooks, by clip, against plain NumPy."""
    random = np.random.default_rng(0)
    groups = [
        {name: random.random((size, 4)) for name in ("forward", "reverse", "top_1", "with_text")}
        | {name: random.random(size) for name in ("teacher_nll", "code_entropy")}
        for size in (3, 2)
    ]
    result = agreement_metrics(groups, seed=0)
    forward = np.concatenate([group["forward"] for group in groups])
    assert result.clips == 5
    assert np.isclose(result.forward.value, forward.mean())
    assert np.allclose(result.forward_by_codebook, forward.mean(axis=0))
    assert result.with_text is not None
    assert np.isclose(result.with_text.value, np.concatenate([group["with_text"] for group in groups]).mean())
    assert np.isclose(result.teacher_nll.value, np.mean([*groups[0]["teacher_nll"], *groups[1]["teacher_nll"]]))


def test_agreement_of_a_model_with_one_pass() -> None:
    """It has no KL without guidance."""
    teacher = torch.randn(6, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    arrays = agreement(teacher, teacher[:3], 3.0).arrays()
    result = agreement_metrics([{**arrays, "teacher_nll": np.ones(3), "code_entropy": np.ones(3)}], seed=0)
    assert result.with_text is None
    assert result.forward.value > 0

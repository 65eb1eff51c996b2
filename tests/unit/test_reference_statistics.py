"""Saved statistics of a reference set give the metrics of its clips; other files are refused by name."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from tinymusician.errors import DataError
from tinymusician.evaluate import clip_embeddings
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings
from tinymusician.evaluate.frechet import fad, fad_by_clip, fad_infinity
from tinymusician.evaluate.kad import kad
from tinymusician.evaluate.reference_statistics import Gaussian, ReferenceStatistics, load_reference_statistics

FACTS = {"kind": "clap", "model": "band-clap", "rate": 16_000}


def drawn(clips: int, seed: int) -> ClipEmbeddings:
    values = np.random.default_rng(seed).normal(size=(clips, 3, 4)).astype(np.float32)
    return ClipEmbeddings.of(list(values))


def saved(statistics: ReferenceStatistics, path: Path) -> ReferenceStatistics:
    path.write_bytes(statistics.to_bytes())
    return load_reference_statistics(path)


def test_saved_statistics_give_the_same_distances(tmp_path: Path) -> None:
    clips, reference = drawn(30, 0), ReferenceStatistics.of(drawn(40, 1), FACTS)
    again = saved(reference, tmp_path / "reference.npz")
    assert fad(clips, again) == fad(clips, reference)
    assert fad_infinity(clips, again) == fad_infinity(clips, reference)
    assert kad(clips, again) == kad(clips, reference)
    again.check_embedding(FACTS, "reference.npz")
    with pytest.raises(DataError, match=r"reference.npz: .* another evaluate.embedding \(rate 16000, here 24000\)"):
        again.check_embedding({**FACTS, "rate": 24_000}, "reference.npz")


def test_of_many_vectors_some_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAD and KAD do not change; FAD∞ keeps the reference whole, as it does for mean and covariance alone."""
    monkeypatch.setattr(clip_embeddings, "MAX_PAIRED_VECTORS", 60)
    clips, reference = drawn(30, 0), ReferenceStatistics.of(drawn(40, 1))
    again = saved(reference, tmp_path / "reference.npz")
    assert again.embeddings is not None
    assert len(again.embeddings.values) == 40
    assert fad(clips, again) == fad(clips, reference)
    assert kad(clips, again) == kad(clips, reference)
    assert fad_infinity(clips, again) == fad_infinity(clips, ReferenceStatistics(reference.gaussian))


@pytest.mark.parametrize("names", [("mu", "sigma"), ("mean", "covariance"), ("mu", "cov")])
def test_mean_and_covariance_of_another_tool(names: tuple[str, str], tmp_path: Path) -> None:
    clips, values = drawn(30, 0), drawn(40, 1).values
    arrays: dict[str, np.ndarray] = dict(zip(names, (values.mean(axis=0), np.cov(values.T)), strict=True))
    np.savez(tmp_path / "theirs.npz", **arrays)
    theirs = load_reference_statistics(tmp_path / "theirs.npz")
    theirs.check_embedding(FACTS, "theirs.npz")
    assert fad(clips, theirs) == pytest.approx(fad(clips, ReferenceStatistics.of(drawn(40, 1))))
    with pytest.raises(DataError, match="mean and covariance only; the embeddings are needed"):
        kad(clips, theirs)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"mu": np.zeros(2)}, "has mu; needed are mean and covariance, or mu and sigma"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"mean \(2,\) and covariance \(3, 3\)"),
        ({"mu": np.array([np.nan, 0]), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 0.5], [0, 1]])}, "not symmetric"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "not numbers"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "no .npz file of plain arrays"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "embeddings": np.zeros((4, 2))}, "is damaged"),
        (
            {"mu": np.zeros(2), "sigma": np.eye(2), "embeddings": np.zeros((4, 3)), "owners": np.zeros(4, int)},
            "embeddings of 3",
        ),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "embeddings": np.eye(2), "owners": np.array([1, 0])}, "is damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "embedding": np.array("{")}, "is damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "embedding": np.array("[1]")}, "is damaged"),
        ({"mu": np.zeros(2), "sigma": np.diag([1.0, -1.0])}, "negative eigenvalues"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "vectors": np.array(np.inf)}, "is damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "vectors": np.array(-5)}, "is damaged"),
        (
            {"mu": np.zeros(2), "sigma": np.eye(2), "embeddings": np.eye(2) * np.nan, "owners": np.arange(2)},
            "is damaged",
        ),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "embeddings": np.eye(2), "owners": np.array([0, 0.5])}, "is damaged"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "mean .0,. and covariance"),
    ],
)
def test_unusable_files_are_refused_by_name(arrays: dict[str, np.ndarray], problem: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(DataError, match=f"r.npz: .*{problem}"):
        load_reference_statistics(tmp_path / "r.npz")


def test_an_array_alone_is_no_statistics(tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.eye(2))
    with pytest.raises(DataError, match=r"r.npy: cannot be read as reference statistics"):
        load_reference_statistics(tmp_path / "r.npy")


def test_distances_that_are_not_finite(tmp_path: Path) -> None:
    """Of values that are finite, but whose squares are not."""
    clips = drawn(30, 0)
    far = ReferenceStatistics(
        Gaussian(np.full(4, 1e300), np.eye(4)), 40, ClipEmbeddings(clips.values * 1e200, clips.owners)
    )
    with pytest.raises(DataError, match="FAD: is not finite"):
        fad(clips, far)
    with pytest.raises(DataError, match="KAD: is not finite"):
        kad(clips, far)
    with pytest.raises(DataError, match="FAD: embeddings of 4 and 3 dimensions"):
        fad_by_clip(clips, ReferenceStatistics(Gaussian(np.zeros(3), np.eye(3))))


def test_any_damaged_byte_is_one_line(tmp_path: Path) -> None:
    """Whatever a changed byte makes of the file: it is refused by name, or reads as another valid one."""
    content, random = ReferenceStatistics.of(drawn(40, 1), FACTS).to_bytes(), np.random.default_rng(0)
    for position in random.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[position] ^= 0xFF
        (tmp_path / "r.npz").write_bytes(changed)
        with contextlib.suppress(DataError):
            load_reference_statistics(tmp_path / "r.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_other_files_are_no_statistics(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"r.npz: cannot be read as reference statistics"):
        load_reference_statistics(tmp_path / "r.npz")

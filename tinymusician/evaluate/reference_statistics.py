"""The statistics of a reference set: computed from its embeddings, saved as an .npz file, or read from one.

    mean [D], covariance [D, D]    of all vectors, float64
    vectors                        their number
    embeddings [M, D], owners [M]  at most 8,000 of them, evenly spaced within each clip, and the clip of each
    embedding                      what the vectors depend on, as JSON (`Embedder.facts`)

Files of other tools have `mu` and `sigma` alone, as pytorch-fid names them. These two are enough for FAD; KAD needs the
embeddings.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinymusician.data.shards import Arrays
from tinymusician.errors import DataError
from tinymusician.evaluate.clip_embeddings import ClipEmbeddings, Floats, Indices
from tinymusician.json_types import JsonObject


@dataclass(frozen=True)
class Gaussian:
    """`mean` [D] and `covariance` [D, D]."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, values: Floats) -> Gaussian:
        """The moments of vectors [M, D]; a single one has no covariance."""
        centred = values - values.mean(axis=0)
        return cls(values.mean(axis=0), centred.T @ centred / max(len(values) - 1, 1))


@dataclass(frozen=True)
class ReferenceStatistics:
    """The Gaussian of a reference's `vectors` vectors, and the embeddings of its clips.

    `vectors` and `embeddings` are None where a file does not have them. `embedding` is `Embedder.facts`, if recorded.
    """

    gaussian: Gaussian
    vectors: int | None = None
    embeddings: ClipEmbeddings | None = None
    embedding: JsonObject | None = None

    @classmethod
    def of(cls, embeddings: ClipEmbeddings, embedding: JsonObject | None = None) -> ReferenceStatistics:
        """From the embeddings of all clips."""
        return cls(Gaussian.of(embeddings.values), len(embeddings.values), embeddings, embedding)

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.gaussian.mean)

    @property
    def all_embeddings(self) -> ClipEmbeddings | None:
        """The embeddings, if they are those of all vectors."""
        complete = self.embeddings is not None and len(self.embeddings.values) == self.vectors
        return self.embeddings if complete else None

    def check_embedding(self, facts: JsonObject, name: str) -> None:
        """Check that the vectors are those of an embedder, as far as this is recorded.

        Raises:
            DataError: they are of another one.
        """
        if self.embedding is None:
            return
        differing = sorted(key for key in {*facts, *self.embedding} if facts.get(key) != self.embedding.get(key))
        if differing:
            values = ", ".join(f"{key} {self.embedding.get(key)}, here {facts.get(key)}" for key in differing)
            raise DataError(f"{name}: its vectors are of another evaluate.embedding ({values})")

    def to_bytes(self) -> bytes:
        """As an .npz file."""
        arrays: Arrays = {"mean": self.gaussian.mean, "covariance": self.gaussian.covariance}
        if self.embeddings is not None:
            some = self.embeddings.subsampled()
            arrays |= {"embeddings": some.values.astype(np.float32), "owners": some.owners}
        if self.vectors is not None:
            arrays["vectors"] = np.array(self.vectors)
        if self.embedding is not None:
            arrays["embedding"] = np.array(json.dumps(self.embedding))
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return file.getvalue()


def load_reference_statistics(path: Path) -> ReferenceStatistics:
    """Read the statistics of a reference set from an .npz file.

    Raises:
        DataError: the file cannot be read, or has no usable mean and covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as file:  # an array, if the file is an .npy, is no context manager
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "no .npz file of plain arrays"
        raise DataError(f"{path}: cannot be read as reference statistics ({reason})") from error
    gaussian = _gaussian(arrays, path)
    try:
        embeddings = _embeddings(arrays["embeddings"], arrays["owners"]) if "embeddings" in arrays else None
        vectors = int(arrays["vectors"]) if "vectors" in arrays else None
        embedding = dict(json.loads(str(arrays["embedding"]))) if "embedding" in arrays else None
        if vectors is not None and vectors < 1:
            raise ValueError(f"{vectors} vectors")
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, DataError) as error:
        raise DataError(f"{path}: is damaged ({error}); save these reference statistics again") from error
    if embeddings is not None and embeddings.dimension != len(gaussian.mean):
        raise DataError(
            f"{path}: is damaged: embeddings of {embeddings.dimension} and mean of {len(gaussian.mean)} dimensions"
        )
    return ReferenceStatistics(gaussian, vectors, embeddings, embedding)


def _embeddings(values: Floats, owners: Indices) -> ClipEmbeddings:
    """The embeddings of clips, whose vectors follow each other.

    Raises:
        ValueError: `owners` are not those of the vectors.
    """
    if values.dtype.kind not in "fiu" or owners.dtype.kind not in "iu":
        raise ValueError(f"embeddings of type {values.dtype}, owners of type {owners.dtype}")
    if values.ndim != 2 or owners.shape != values.shape[:1] or (np.diff(owners) < 0).any():
        raise ValueError(f"{owners.shape} owners of {values.shape} embeddings")
    counts = np.unique(owners, return_counts=True)[1]
    return ClipEmbeddings.of(np.split(values, np.cumsum(counts)[:-1]))


def _gaussian(arrays: Arrays, path: Path) -> Gaussian:
    """The mean and covariance under their names here, or those of other tools.

    Raises:
        DataError: they are absent, of unlike shapes, not finite, or the covariance is not symmetric.
    """
    mean, covariance = (
        next((arrays[name] for name in names if name in arrays), None)
        for names in (("mean", "mu"), ("covariance", "sigma", "cov"))
    )
    if mean is None or covariance is None:
        raise DataError(
            f"{path}: has {', '.join(arrays) or 'no arrays'}; needed are mean and covariance, or mu and sigma"
        )
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"{path}: mean {mean.shape} and covariance {covariance.shape}; needed are [D] and [D, D]")
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise DataError(f"{path}: mean or covariance are not numbers ({mean.dtype}, {covariance.dtype})")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: mean or covariance has numbers that are not finite")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * float(np.abs(covariance).max(initial=0))):
        raise DataError(f"{path}: the covariance is not symmetric")
    values = np.linalg.eigvalsh((covariance + covariance.T) / 2)
    if values[0] < -1e-4 * max(values[-1], 0):
        raise DataError(f"{path}: the covariance has negative eigenvalues, such as {values[0]:.3g}")
    return Gaussian(mean, (covariance + covariance.T) / 2)

"""laion-clap's embeddings from an actor in its environment, compared with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluate.laion_clap_actor import LaionClapActor
from tests.environments.build import IN, answered, environment
from tinymusician.errors import ModelError
from tinymusician.recipe import LaionClapEmbeddingConfig

pytestmark = [pytest.mark.slow, pytest.mark.environments]

PROMPTS = ["calm piano", "loud rock music"]


@pytest.fixture(scope="module", params=IN)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the published layout with random weights, its tokenizer, and reference.npz."""
    folder = tmp_path_factory.mktemp("laion") / "clap"
    answered(request.param, "laion-clap", "laion_reference.py", folder)
    return folder


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def config_of(folder: Path, **changes: str) -> LaionClapEmbeddingConfig:
    home = environment("laion-clap").parents[1]
    fields = {
        "checkpoint": str(folder / "checkpoint.pt"),
        "tokenizer": str(folder / "tokenizer"),
        "environment": str(home),
    }
    return LaionClapEmbeddingConfig(**{**fields, "audio_model": "HTSAT-tiny", **changes})


@pytest.mark.usefixtures("_ray")
def test_embeddings_equal_the_packages_in_fixed_windows(checkpoint: Path) -> None:
    embedder, expected = LaionClapActor(config_of(checkpoint)), np.load(checkpoint / "reference.npz")
    wave = expected["wave"]
    (actual,) = embedder([wave])
    np.testing.assert_allclose(actual, expected["audio"], atol=1e-5)
    np.testing.assert_allclose(embedder.text(PROMPTS), expected["text"], atol=1e-5)
    np.testing.assert_allclose(embedder.text(PROMPTS[1:]), expected["text"][1:], atol=1e-5)
    long = np.concatenate([wave, wave[:240_000]])
    once, again = embedder([long, wave]), embedder([long])
    assert once[0].shape == (2, 512)
    np.testing.assert_allclose(once[0], again[0], atol=1e-5)
    np.testing.assert_allclose(once[0][0], expected["audio"][0], atol=1e-5)
    assert embedder.facts["window"] == 480_000


@pytest.mark.usefixtures("_ray")
def test_missing_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="infra/environments/install laion-clap FOLDER"):
        LaionClapActor(config_of(checkpoint, environment=str(tmp_path)))
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="laion-clap cannot be used"):
        LaionClapActor(config_of(checkpoint, checkpoint=str(tmp_path / "broken.pt")))

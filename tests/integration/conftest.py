"""What the integration tests share: a Ray, a tiny recipe and an empty store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import chromium
from tests.ray_cluster import Ray, UndisturbedRuns, running_ray, settings
from tests.s3_server import S3Server
from tests.tiny import CLIPS, write_clips, write_tiny_recipe
from tinymusician.artifacts.store import LocalStore


@pytest.fixture(scope="package")
def ray(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """One Ray for all tests; the S3 server's address and keys are in its environment."""
    with running_ray({"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}, Ray) as ray:
        yield ray


@pytest.fixture(scope="session")
def band(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged student as a float32 bundle."""
    from tests.bundles import write_bundle
    from tinymusician.models.musicgen import load_musicgen

    folder = tmp_path_factory.mktemp("band")
    weights = Path(__file__).parents[2] / "tinymusician/models/weights/band-small"
    write_bundle(load_musicgen("band-small"), weights / "tokenizer.json", folder, seconds=4.0)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as result:
        yield result


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="session")
def evaluate_options(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The recipe and what it is evaluated by: a folder of noises, one of which is no sound at all."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder)
    embedding = json.dumps({"kind": "encodec", "model": str(recipe.parent / "teacher")})
    values = ("reference.kind=folder", f"reference.audio={folder}", f"embedding={embedding}", f"clips={CLIPS}")
    values += (
        "clap=band-clap",
        "tagger=band-tagger",
        "judge=band-mu",
        "seconds=0.4",
        "batch_size=4",
        "agreement_clips=8",
    )
    values += ("cost_runs=1", "resamples=20", "num_audio_samples=2")
    return [str(recipe), *settings(tuple(f"evaluate.{value}" for value in values))]


@pytest.fixture(scope="package")
def undisturbed(ray: Ray, recipe: Path, shared_folder: Path) -> UndisturbedRuns:
    return UndisturbedRuns(ray, recipe, shared_folder)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")

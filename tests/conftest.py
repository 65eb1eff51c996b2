"""Shared by all tests: no model hub, one thread, job keys of their own, and a small MusicGen with random weights."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores

import pytest

if TYPE_CHECKING:
    from tests.s3_server import S3Server
    from tinymusician.artifacts.store import Store


class OutcomeFile:
    """Writes each test's outcome and seconds, setup and teardown included, into a file, for .ci/stages.py."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tests: dict[str, dict[str, str | float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._tests.setdefault(report.nodeid, {"name": report.nodeid, "outcome": "passed", "seconds": 0.0})
        test["seconds"] = float(test["seconds"]) + report.duration
        test["outcome"] = report.outcome if report.outcome != "passed" else test["outcome"]

    def pytest_sessionfinish(self) -> None:
        with self._file.open("a") as file:
            file.writelines(json.dumps(test) + "\n" for test in self._tests.values())


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers inherit it
        folder = tempfile.TemporaryDirectory(prefix="job-keys-")
        os.environ["TMCTL_JOB_KEYS"] = folder.name
        config.add_cleanup(folder.cleanup)
    if "TEST_REPORT" in os.environ and not hasattr(config, "workerinput"):  # xdist's controller receives every report
        config.pluginmanager.register(OutcomeFile(Path(os.environ["TEST_REPORT"])))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def tiny_musicgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MusicGen folder of 4 decoder layers over 4 codebooks of 16 codes; its logits are made to differ clearly."""
    from tests.tiny import write_tiny_musicgen

    return write_tiny_musicgen(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def bundle(tiny_musicgen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 bundle of that MusicGen, which plays a second if it is not asked for more."""
    from transformers import MusicgenForConditionalGeneration

    from tests.bundles import write_bundle

    folder = tmp_path_factory.mktemp("bundle")
    model = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen)
    write_bundle(model, tiny_musicgen / "tokenizer.json", folder, seconds=1.0)
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; the AWS_* variables point to it."""
    from tests.s3_server import s3_server

    with s3_server(tmp_path_factory.mktemp("swift")) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server


@pytest.fixture
def s3_store(s3: S3Server, request: pytest.FixtureRequest) -> Store:
    """An empty store in a bucket of its own, under a prefix."""
    import hashlib

    import boto3

    from tinymusician.artifacts.s3 import S3Store

    bucket = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    boto3.client("s3").create_bucket(Bucket=bucket)
    return S3Store(bucket, "some/prefix")

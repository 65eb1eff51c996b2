"""The OpenAPI document against the endpoint: schemathesis sends valid and invalid requests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.endpoint import endpoint
from tests.ray_cluster import BIN

pytestmark = pytest.mark.slow
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_meets_a_fault_and_every_answer_is_in_the_document(bundle: Path, tmp_path: Path) -> None:
    with endpoint(model=str(bundle), threads=1, limits={"seconds": 0.5}) as here:
        command = [str(BIN / "st"), "run", f"{here.url}/openapi.json", "--checks", CHECKS, "--seed", "1"]
        command += ["--max-examples", "150", "--workers", "1", "--generation-database", "none", "--no-color"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:]

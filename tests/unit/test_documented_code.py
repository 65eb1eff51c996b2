"""The Python code of the documents runs, and their defaults are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.config import ServeConfig

ROOT = Path(__file__).parents[2]


def python_blocks(path: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL))


@pytest.fixture
def folder(bundle: Path, tiny_musicgen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "my-student").symlink_to(tiny_musicgen)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_generates_audio(folder: Path) -> None:
    names: dict[str, Any] = {}
    exec(python_blocks("README.md"), names)
    rate = names["generator"].codec.shape.sampling_rate
    assert len(names["wave"]) == 5 * rate
    assert np.isfinite(names["wave"]).all()


def test_a_batch_of_requests_finishes(folder: Path) -> None:
    names: dict[str, Any] = {}
    exec(python_blocks("docs/compression.md"), names)
    assert all(generation.is_finished and generation.error is None for generation in names["generations"])


def test_a_student_loads_with_transformers(folder: Path) -> None:
    names: dict[str, Any] = {}
    exec(python_blocks("docs/tutorial.md"), names)
    assert names["wave"].shape[:2] == (1, 1)


def test_every_document_with_python_is_run_above() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    with_code = {str(path.relative_to(ROOT)) for path in documents if python_blocks(str(path.relative_to(ROOT)))}
    assert with_code == {"README.md", "docs/compression.md", "docs/tutorial.md"}


def test_listed_endpoint_settings_have_their_defaults() -> None:
    text = (ROOT / "docs/serving.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([\d.]+) \| ", text, re.MULTILINE)
    assert len(rows) == 6
    for key, default in rows:
        model: Any = ServeConfig
        *sections, name = key.split(".")
        for section in sections:
            model = model.model_fields[section].annotation
        assert model.model_fields[name].default == float(default), key

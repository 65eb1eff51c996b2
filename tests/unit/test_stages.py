"""CI's stages: what each of them covers, and when it runs again."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.ci_scripts import load_ci_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stages() -> ModuleType:
    return load_ci_script("stages")


def git(folder: Path, *words: str) -> list[str]:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


@pytest.fixture
def checkout(stages: ModuleType, tmp_path: Path) -> Path:
    """A checkout with all paths of this one, where no stage has passed; each file has its own path for content."""
    for path in set(git(ROOT, "ls-files", "-z")) - {stages.PASSED}:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    return tmp_path


def chosen(stages: ModuleType, root: Path, **how: Any) -> set[str]:
    return {stage.name for stage in stages.read_stages() if stages.selected(stage, root, **how)[0]}


def pass_all(stages: ModuleType, root: Path) -> None:
    for stage in stages.read_stages():
        assert stages.run(stages.Stage(stage.name, "true", stage.when, stage.files), root)


def test_every_file_belongs_to_a_stage_that_always_runs(stages: ModuleType) -> None:
    always = [stage for stage in stages.read_stages() if stage.when == "always"]
    assert [stage.name for stage in always] == ["check", "test", "docs", "sbom"]
    tracked = {path for path in git(ROOT, "ls-files", "-z") if (ROOT / path).is_file()}
    for stage in always:
        assert tracked - set(stage.covered(ROOT)) <= {stages.PASSED}


def test_every_pattern_names_a_file(stages: ModuleType) -> None:
    for stage in stages.read_stages():
        for pattern in stage.files:
            assert stages.Stage(stage.name, "", "", (pattern,)).covered(ROOT), pattern


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("docs/tutorial.md", set()),
        ("tinymusician/distill/objective.py", set()),
        ("jobs/worker/actor_pool.py", {"machines", "compose"}),
        ("jobs/sweep/job.py", set()),
        ("tests/machines.py", {"machines"}),
        ("serve/ingress.py", {"machines", "compose"}),
        ("infra/docker/store/run", {"compose"}),
        ("docker-compose.yml", {"compose"}),
        ("infra/docker/ray-node", {"machines", "compose"}),
        ("constraints.txt", {"machines", "compose"}),
        ("infra/locks/cluster.txt", {"compose"}),
        ("Makefile", {"machines", "compose"}),
        (".ci/stages.toml", {"machines", "compose"}),
        (".ci/passed.json", set()),
    ],
)
def test_a_changed_file_selects_its_stages(stages: ModuleType, checkout: Path, path: str, expected: set[str]) -> None:
    always = {"check", "test", "docs", "sbom"}
    assert chosen(stages, checkout) == {*always, "machines", "compose"}, "nothing has passed yet"
    pass_all(stages, checkout)
    assert chosen(stages, checkout) == always
    file = checkout / path
    file.write_text(file.read_text() + "\n")
    assert chosen(stages, checkout) == always | expected


def test_each_file_a_stage_covers_selects_it(stages: ModuleType, checkout: Path) -> None:
    pass_all(stages, checkout)
    for stage in stages.read_stages():
        if stage.when == "changed":
            for path in stage.covered(checkout):
                content = (checkout / path).read_text()
                (checkout / path).write_text("something else")
                assert stages.selected(stage, checkout)[0], path
                (checkout / path).write_text(content)


def test_new_and_removed_files_count(stages: ModuleType, checkout: Path) -> None:
    pass_all(stages, checkout)
    (checkout / "tests/containers/test_more.py").write_text("new")
    assert "compose" in chosen(stages, checkout)
    (checkout / "tests/containers/test_more.py").unlink()
    assert "compose" not in chosen(stages, checkout)
    (checkout / "tests/containers/engine.py").unlink()
    assert "compose" in chosen(stages, checkout)


def test_all_and_full_select_every_stage(stages: ModuleType, checkout: Path) -> None:
    pass_all(stages, checkout)
    assert chosen(stages, checkout, full=True) == {"check", "test", "docs", "sbom", "machines", "compose"}
    assert chosen(stages, checkout, everything=True) == {stage.name for stage in stages.read_stages()}
    assert chosen(stages, checkout, names=("kills",)) == {"kills"}


def test_executable_bit_changes_the_digest(stages: ModuleType, checkout: Path) -> None:
    pass_all(stages, checkout)
    (checkout / "infra/docker/ray-node").chmod(0o755)
    assert {"machines", "compose"} <= chosen(stages, checkout)


def test_a_stage_that_fails_or_skips_a_test_has_not_passed(
    stages: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not stages.run(stages.Stage("machines", "false", "changed", ("jobs/worker/actor_pool.py",)), checkout)
    assert "machines" in chosen(stages, checkout)
    script = checkout / "skip.sh"
    script.write_text('echo \'{"name": "t", "outcome": "skipped", "seconds": 2.5}\' >> "$TEST_REPORT"\n')
    assert stages.run(stages.Stage("machines", f"sh {script}", "changed", ("jobs/worker/actor_pool.py",)), checkout)
    assert "machines" in chosen(stages, checkout)
    said = capsys.readouterr().out
    assert "2.5 s  t" in said
    assert "1 tests, 1 skipped" in said

"""Windows without its absent modules, containers with quotas, and other runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from tests.world import World
from tinymusician.artifacts.file_names import is_portable
from tinymusician.errors import BundleError
from tinymusician.runtime.bundle import DEFAULT_BUNDLE, PACKAGED
from tinymusician.runtime.cpus import available_cpus, engine_threads
from tinymusician.runtime.generator import load_generator

WITHOUT = """
import subprocess, sys, types  # subprocess takes a machine with msvcrt for Windows
sys.modules["fcntl"] = sys.modules["resource"] = None
locks = []
sys.modules["msvcrt"] = types.SimpleNamespace(LK_LOCK=1, locking=lambda *words: locks.append(words))
from jobs.cli.main import main
try:
    main()
finally:
    print(len(locks), file=sys.stderr)
"""


def run_without(*words: str) -> subprocess.CompletedProcess[str]:
    """A `tmctl` command in a Python that lacks what Windows lacks; the last line on stderr counts the locks."""
    return subprocess.run([sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True, check=False)


def test_playing_and_pulling_without_unix_modules(world: World, tmp_path: Path) -> None:
    ended = run_without("generate", "a jig", "--seconds", "0.5", "-o", str(tmp_path / "jig.wav"))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "jig.wav").stat().st_size > 8000
    world.registry.release(world.made(decoder="one"), "stable", {})
    key = world.registry.roots()[-1].public_keys("root")[0]
    pulled = ("pull", "band@stable", "--to", str(tmp_path / "device"), "--root-key", key)
    ended = run_without(*pulled, "--from", world.registry.store.url)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stderr.splitlines()[-1]) >= 1


@pytest.mark.parametrize(
    "name", ["CON", "nul.txt", "Com1.onnx", "a.", "a ", "a:b", "what?", "a|b", "a\tb", "lpt9", "CONIN$", "com¹"]
)
def test_names_that_windows_refuses(name: str) -> None:
    assert not is_portable(name)


@pytest.mark.parametrize("name", ["decoder.onnx", "console.txt", "nul_", "com10", ".hidden", "a b", "ü.wav"])
def test_names_that_are_portable(name: str) -> None:
    assert is_portable(name)


def write_groups(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ("0::/pod/a\n", {"sys/fs/cgroup/pod/cpu.max": "100000 100000", "sys/fs/cgroup/pod/a/cpu.max": "max 100000"}, 1),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/x\n",
            {
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000",
            },
            1,
        ),
    ],
)
def test_threads_respect_the_quota_of_a_container(
    tmp_path: Path, groups: str, files: dict[str, str], cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_groups(tmp_path, groups, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert available_cpus(root) == engine_threads(0, root) == cpus
    assert engine_threads(5, root) == 5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"sys/fs/cgroup/cpu.max": "max 100000"},
        {"sys/fs/cgroup/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu.cfs_period_us": "100000"},
    ],
)
def test_threads_without_a_quota(tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_groups(tmp_path, "0::/\n", files)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert (available_cpus(root), engine_threads(0, root)) == (8, 0), "ONNX Runtime decides"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert engine_threads(0, root) == 1


def test_an_older_runtime_is_named_with_the_one_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    def with_int8_cache(*_: object, **__: object) -> object:
        names = ("codes", "positions", "text_mask", "past_key.0", "cross_key.0")
        inputs = [SimpleNamespace(name=name, type="tensor(int8)") for name in names]
        return SimpleNamespace(get_inputs=lambda: inputs)

    folder = PACKAGED / DEFAULT_BUNDLE
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    monkeypatch.setattr(onnxruntime, "InferenceSession", with_int8_cache)
    with pytest.raises(BundleError, match=r"has an int8 cache; ONNX Runtime 1\.27 or newer .*, and this is 1\.20\.1"):
        load_generator(folder)
    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(BundleError, match=r"cannot be loaded by ONNX Runtime 1\.20\.1 .*; ONNX Runtime 1\.27 or newer"):
        load_generator(folder)


def test_providers_with_device_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", fake.get_available_providers)
    with pytest.raises(BundleError, match="keeps tensors in its device's memory"):
        load_generator(provider="CUDAExecutionProvider")

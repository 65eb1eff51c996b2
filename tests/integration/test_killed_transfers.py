"""kill -9 at random moments of publishing and pulling: a device always has a complete bundle, and recovers.

`make test` kills 6 of each (3 on S3), `make test-kills` 20.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tinymusician.artifacts.installation import Installation
from tinymusician.artifacts.keys import keys_folder
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.sources import open_source
from tinymusician.artifacts.store import Store

pytestmark = pytest.mark.slow

SIZES = {"decoder.onnx": 12_000_000, "codec.onnx": 3_000_000, "text/encoder.onnx": 2_000_000, "config.json": 700}
PUBLISH = """
import sys
from pathlib import Path
import numpy as np
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.keys import keys_folder
from tinymusician.artifacts.open import open_store
home, number = Path(sys.argv[1]), int(sys.argv[2])
folder, store = home / f"made-{number}", open_store()
for name, size in eval(sys.argv[3]).items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(number if "decoder" in name else 0).bytes(size))
print("ready", flush=True)
facts = {"recipe": {}, "lineage": {"number": number}, "metrics": {}, "licence": "Apache-2.0"}
manifest = publish(store, folder, name="band", kind="bundle", **facts)
ReleaseRegistry(store, keys_folder()).release(manifest, "stable", {"number": number})
"""
PULL = """
import sys
from pathlib import Path
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.sources import open_source
client = PullClient("band@stable", Path(sys.argv[1]) / "device", [open_source(open_store().url)], sys.argv[2])
print("ready", flush=True)
client.pull()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMCTL_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("TMCTL_STORE", (tmp_path / "store").as_uri())
    return tmp_path


@pytest.fixture(params=["folder", "s3"])
def store(home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the scripts use, too."""
    if request.param == "s3":
        monkeypatch.setenv("TMCTL_STORE", request.getfixturevalue("s3_store").url)
    return open_store()


def killed(script: str, *words: str, after: float | None) -> float | None:
    """Run a script, and kill it so many seconds after it is ready; returns how long it ran, None if it was killed."""
    process = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    began = time.monotonic()
    if after is not None:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode in ((0,) if after is None else (0, -signal.SIGKILL))
    return time.monotonic() - began if process.returncode == 0 else None


def plays(home: Path) -> int | None:
    """The version that the device plays from, every byte of it looked at."""
    result = Installation(home / "device").usable()
    if result is None:
        return None
    version, folder = result
    for file in version.release.files:
        assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(version.release.files)
    return version.release.version


def test_killed_publishers_and_devices(home: Path, store: Store) -> None:
    check_killed(home, store, kills=6 if store.url.startswith("file:") else 3)


@pytest.mark.kills
def test_random_kills_of_publishers_and_devices(home: Path, store: Store) -> None:
    check_killed(home, store, kills=20)


def check_killed(home: Path, store: Store, kills: int) -> None:
    """Kill so many publishers, and so many devices."""
    chance = random.Random(0)
    registry = ReleaseRegistry(store, keys_folder())
    pinned = registry.create().public_keys("root")[0]
    publishing, pulling = killed(PUBLISH, str(home), "0", repr(SIZES), after=None), 0.0
    last, done, number = 0, Counter[str](), 0
    while min(done["publish"], done["pull"]) < kills:
        number += 1
        after = chance.uniform(0, publishing or 1)
        done["publish"] += killed(PUBLISH, str(home), str(number), repr(SIZES), after=after) is None
        newest = registry.history("band", "stable")[-1]
        for file in newest.files:
            assert hashlib.sha256(store.get(f"blobs/sha256/{file.sha256}")).hexdigest() == file.sha256
        if number % 4 == 1:  # how long a pull takes that brings everything that is new
            pulling = killed(PULL, str(home), pinned, after=None) or 1
        else:
            done["pull"] += killed(PULL, str(home), pinned, after=chance.uniform(0, pulling)) is None
        now = plays(home)
        assert now is not None
        assert now >= last, "a device never goes back"
        last = now
    said = f"killed {dict(done)} in {number} turns; {last} versions came to the device"
    logging.getLogger(__name__).info(said)
    registry.renew()
    version = PullClient("band@stable", home / "device", [open_source(store.url)]).pull()
    assert plays(home) == version.release.version == registry.history("band", "stable")[-1].version
    assert not list((home / "device" / "partial").iterdir())
    for entry in store.list("blobs/"):
        assert hashlib.sha256(store.get(entry.key)).hexdigest() == Path(entry.key).name, "nothing unfinished is seen"


def test_disk_full_during_a_download(home: Path) -> None:
    """Writing fails after a megabyte (a limit of the system on files): one line says so, and the old version plays."""
    pinned = ReleaseRegistry(open_store(), keys_folder()).create().public_keys("root")[0]
    small = repr({"decoder.onnx": 1000})
    killed(PUBLISH, str(home), "0", small, after=None)
    killed(PULL, str(home), pinned, after=None)
    killed(PUBLISH, str(home), "1", repr({"decoder.onnx": 3_000_000}), after=None)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n" + PULL
    ended = subprocess.run(
        [sys.executable, "-c", limited, str(home), pinned], capture_output=True, text=True, check=False, env=os.environ
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("tinymusician.errors.StoreError: ")
    assert "File too large" in last
    assert plays(home) == 1
    killed(PULL, str(home), pinned, after=None)
    assert plays(home) == 2

"""The speed of artifacts: pull against curl, publish against boto3, the bytes of an update, and memory.

    python benchmarks/transfer.py [--megabytes 1000]

`pull_over_curl`: the rate of a verified pull of one file over that of `curl` of the same file, from a web server on
loopback. `pull_over_flushed_curl`: over that of `curl` and `fsync`, since a pull ends when its file is on the disk.
`publish_over_boto3`: the rate of publishing it to an S3 server on loopback (OpenStack Swift) over that of
`upload_file`. Of all the better of two turns each, one after the other; each begins with nothing to flush.
`update_share`: bytes that the server sent for a release in which only the decoder changed, over the decoder's size.
`memory_ratio`, `publish_memory_ratio`: the most memory of a pulling, of a publishing process with the whole file over
that with a tenth of it. All in one run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tinymusician.json_types import JsonObject

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import report
from tests.s3_server import s3_server
from tinymusician.artifacts.keys import KEYS_VARIABLE
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.sources import HttpSource
from tinymusician.artifacts.store import LocalStore

FACTS: JsonObject = {"kind": "bundle", "recipe": {}, "lineage": {}, "metrics": {}, "licence": "none"}
PULL = """
import sys
from pathlib import Path
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.sources import HttpSource
from tinymusician.runtime.memory import peak_memory
PullClient(sys.argv[1], Path(sys.argv[2]), [HttpSource(sys.argv[3])], sys.argv[4]).pull()
print(peak_memory())
"""
PUBLISH = """
import sys
from pathlib import Path
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.s3 import S3Store
from tinymusician.runtime.memory import peak_memory
publish(S3Store("bench", sys.argv[2]), Path(sys.argv[1]), name="big", kind="bundle", recipe={}, lineage={}, metrics={},
        licence="none")
print(peak_memory())
"""


class Quiet(SimpleHTTPRequestHandler):
    """Files, and nothing said about it but how many bytes of blobs were sent."""

    sent = 0

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if "/blobs/" in self.path:
            Quiet.sent += os.fstat(source.fileno()).st_size
        super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A web server over a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def written(folder: Path, **sizes: int) -> Path:
    """Files of random bytes."""
    folder.mkdir(parents=True)
    for name, size in sizes.items():
        with (folder / f"{name}.onnx").open("wb") as file:
            for _ in range(0, size, 1 << 20):
                file.write(os.urandom(min(1 << 20, size)))
    return folder


def timed(work: Callable[[], object]) -> float:
    """Seconds, from when what others wrote is on the disk."""
    os.sync()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def curl(url: str, out: Path, is_flushed: bool = False) -> None:
    """Download with curl, and wait until the file is on the disk if `is_flushed`."""
    subprocess.run(["curl", "-sS", "-o", out, url], check=True)
    if is_flushed:
        with out.open("rb") as file:
            os.fsync(file.fileno())


class TransferBenchmark:
    """A publisher in a folder, and web clients."""

    def __init__(self, home: Path, size: int) -> None:
        self._home, self._size = home, size
        os.environ[KEYS_VARIABLE] = str(home / "keys")
        self._store = LocalStore(home / "store")
        self._registry = ReleaseRegistry(self._store, home / "keys")
        self._pinned = self._registry.create().public_keys("root")[0]

    def released(self, name: str, **sizes: int) -> Manifest:
        """A release of files of these sizes."""
        folder = written(self._home / f"{name}-{time.monotonic_ns()}", **sizes)
        manifest = publish(self._store, folder, name=name, **FACTS)
        self._registry.release(manifest, "stable", {})
        return manifest

    def pull_figures(self) -> dict[str, float]:
        """The better of two turns each."""
        manifest = self.released("big", decoder=self._size)
        with served(self._home / "store") as url:
            blob = f"{url}/blobs/sha256/{manifest.files[0].sha256}"
            turns: dict[str, list[float]] = {"curl": [], "flushed_curl": [], "pull": []}
            for turn in range(2):
                client = PullClient("big@stable", self._home / f"device-{turn}", [HttpSource(url)], self._pinned)
                out = self._home / f"curl-{turn}.bin"
                turns["curl"].append(timed(partial(curl, blob, out)))
                turns["flushed_curl"].append(timed(partial(curl, blob, out.with_suffix(".flushed"), is_flushed=True)))
                turns["pull"].append(timed(client.pull))
        pull = min(turns.pop("pull"))
        return {f"pull_over_{name}": min(times) / pull for name, times in turns.items()}

    def update_share(self) -> float:
        """Bytes of an update in which one of three files changed."""
        size, loaded = self._size // 20, 0
        folder = written(self._home / "three-files", decoder=size, codec=size, text=size)
        with served(self._home / "store") as url:
            for _ in range(2):
                (folder / "decoder.onnx").write_bytes(os.urandom(size))
                self._registry.release(publish(self._store, folder, name="three", **FACTS), "stable", {})
                Quiet.sent = 0
                PullClient("three@stable", self._home / "three", [HttpSource(url)], self._pinned).pull()
                loaded = Quiet.sent
        return loaded / size

    def memory_ratio(self) -> float:
        """Two pulls of ten times the size in processes of their own."""
        self.released("small", decoder=self._size // 10)
        result = []
        with served(self._home / "store") as url:
            for name in ("big", "small"):
                words = [f"{name}@stable", str(self._home / f"memory-{name}"), url, self._pinned]
                ended = subprocess.run([sys.executable, "-c", PULL, *words], capture_output=True, check=True)
                result.append(int(ended.stdout))
        return result[0] / result[1]

    def publish_figures(self) -> dict[str, float]:
        """Against the same server, one after the other; memory in processes of their own."""
        import boto3

        folder = written(self._home / "to-publish", decoder=self._size)
        small = written(self._home / "to-publish-small", decoder=self._size // 10)
        with tempfile.TemporaryDirectory() as scratch, s3_server(Path(scratch)) as server:
            os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_DEFAULT_REGION"] = server.endpoint, "us-east-1"
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = server.access_key, server.secret_key
            client = boto3.client("s3")
            client.create_bucket(Bucket="bench")
            turns: dict[str, list[float]] = {"boto3": [], "publish": []}
            for turn in range(2):
                path, store = str(folder / "decoder.onnx"), S3Store("bench", f"store-{turn}")
                turns["boto3"].append(timed(lambda: client.upload_file(path, "bench", f"plain-{turn}")))  # noqa: B023
                turns["publish"].append(timed(lambda: publish(store, folder, name="big", **FACTS)))  # noqa: B023
            peaks = []
            for made, prefix in ((folder, "memory"), (small, "memory-small")):
                words = [sys.executable, "-c", PUBLISH, str(made), prefix]
                peaks.append(int(subprocess.run(words, capture_output=True, check=True).stdout))
            return {
                "publish_over_boto3": min(turns["boto3"]) / min(turns["publish"]),
                "publish_memory_ratio": peaks[0] / peaks[1],
            }


def main() -> None:
    """The last line is JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, default=1000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as home:
        benchmark = TransferBenchmark(Path(home), chosen.megabytes * 1_000_000)
        figures = {
            **benchmark.pull_figures(),
            "memory_ratio": benchmark.memory_ratio(),
            "update_share": benchmark.update_share(),
            **benchmark.publish_figures(),
        }
    report("transfer", figures, {"megabytes": chosen.megabytes})


if __name__ == "__main__":
    main()

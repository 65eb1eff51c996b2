"""A real S3 server for tests: OpenStack Swift with its S3 API, on loopback, with its data in a temporary folder."""

from __future__ import annotations

import contextlib
import getpass
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "slo", "dlo", "copy")


class S3Server(NamedTuple):
    """The server's address, a key that it accepts, and a context in which it does not respond."""

    endpoint: str
    access_key: str
    secret_key: str
    gone: Callable[[], contextlib.AbstractContextManager[None]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def s3_server(root: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run proxy, account, container and object servers until the block ends; the proxy answers on `host`."""
    ports = {name: free_port() for name in ("proxy", "account", "container", "object")}
    configure(root, ports, host)
    binaries = Path(sys.executable).parent
    endpoint = f"http://{host}:{ports['proxy']}"
    with contextlib.ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((root / f"{name}.log").open("ab"))
            command = [str(binaries / f"swift-{name}-server"), str(root / f"{name}-server.conf"), "-v"]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            return process

        running = {name: start(name) for name in ports}

        @contextlib.contextmanager
        def gone() -> Iterator[None]:
            running["proxy"].kill()
            running["proxy"].wait()
            yield
            running["proxy"] = start("proxy")
            wait_until_healthy(f"{endpoint}/healthcheck", root)

        for name in ("account", "container", "object"):  # without them, a healthy proxy answers 503
            wait_until(partial(connect, ports[name]), root)
        wait_until_healthy(f"{endpoint}/healthcheck", root)
        yield S3Server(endpoint, "test:tester", "testing-secret", gone)


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=1).close()


def wait_until_healthy(url: str, root: Path) -> None:
    wait_until(lambda: urllib.request.urlopen(url, timeout=1).read(), root)


def wait_until(answers: Callable[[], object], root: Path) -> None:
    """Wait until a call raises no OSError."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            answers()
            return
        time.sleep(0.1)
    logs = "\n".join(path.read_text()[-1500:] for path in root.glob("*.log"))
    raise RuntimeError(f"the S3 server did not start:\n{logs}")


def configure(root: Path, ports: dict[str, int], host: str) -> None:
    """One ring of one device for each server, and the S3 API before the proxy."""
    (root / "srv" / "d1").mkdir(parents=True)
    (root / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = test\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    common = (
        f"user = {getpass.getuser()}\nswift_dir = {root}\ndevices = {root / 'srv'}\n"
        f"mount_check = false\nworkers = 0\nlog_level = WARNING\n"
    )
    builder = str(Path(sys.executable).with_name("swift-ring-builder"))
    for name in ("account", "container", "object"):
        (root / f"{name}-server.conf").write_text(
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {ports[name]}\n{common}"
            f"[pipeline:main]\npipeline = {name}-server\n"
            f"[app:{name}-server]\nuse = egg:swift#{name}\n"
            f"[{name}-replicator]\n[{name}-updater]\n[{name}-auditor]\n"
        )
        ring = str(root / f"{name}.builder")
        for words in (["create", "4", "1", "1"], ["add", f"r1z1-127.0.0.1:{ports[name]}/d1", "1"], ["rebalance"]):
            subprocess.run([builder, ring, *words], check=True, stdout=subprocess.DEVNULL)
    filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in FILTERS)
    (root / "proxy-server.conf").write_text(
        f"[DEFAULT]\nbind_ip = {host}\nbind_port = {ports['proxy']}\n{common}[pipeline:main]\n"
        "pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth slo dlo copy proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
        "[filter:s3api]\nuse = egg:swift#s3api\nlocation = us-east-1\ns3_acl = false\n"
        f"[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = testing-secret .admin\n{filters}"
    )

"""A command in the fork server behaves like the command itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fork_server.start import fork_server
from tests.ray_cluster import wait_for


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that a server without libraries runs."""
    with fork_server(tmp_path_factory.mktemp("fork-server") / "socket", dict(os.environ), ()) as result:
        yield {**os.environ, **result}


class Command:
    """A script by the name of a command that the server takes."""

    def __init__(self, folder: Path, script: str, name: str = "tmctl") -> None:
        self.folder, self.words = folder, [sys.executable, str(folder / name), "one", "two"]
        (folder / name).write_text(script)

    def run(self, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words, env=environment, cwd=self.folder, input="text\n", capture_output=True, text=True, check=False
        )

    def start(self, environment: dict[str, str]) -> tuple[subprocess.Popen[str], int]:
        """The process, and the id that it prints as its own."""
        process = subprocess.Popen(self.words, env=environment, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    "end",
    ["pass", "sys.exit(3)", "sys.exit('a message')", "sys.exit(None)", "raise ValueError('wrong')", "os._exit(7)"],
)
def test_installed_package_gives_equal_results(variables: dict[str, str], tmp_path: Path, end: str) -> None:
    """Arguments, folder, environment, path, streams, what happens at its end; but the server has run it."""
    script = (
        "import atexit, os, sys\nprint(sys.argv, os.getcwd(), os.environ['WORD'], sys.path[0], __name__, input())\n"
        "atexit.register(print, 'at exit', flush=True)\nprint('an error', file=sys.stderr)\n"
        f"sys.stdout.flush()\n{end}\n"
    )
    command = Command(tmp_path, script)
    alone = command.run({**os.environ, "WORD": "x y"})
    forked = command.run({**variables, "WORD": "x y"})
    assert (forked.returncode, forked.stdout) == (alone.returncode, alone.stdout)
    assert forked.stderr.splitlines()[-1] == alone.stderr.splitlines()[-1]
    said = Command(tmp_path, "import os\nprint(os.getpid(), os.getppid())\n").run(variables).stdout.split()
    assert f"fork_server/server.py {variables['FORK_SERVER']}" in command_line(int(said[1]))


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


WAITS = "import os, signal, sys, time\n{handler}print(os.getpid(), flush=True)\nwhile True: time.sleep(1)\n"
TERM = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"


@pytest.mark.parametrize(("handler", "code"), [(TERM, 5), ("", -signal.SIGTERM)])
def test_signals_reach_the_fork(variables: dict[str, str], tmp_path: Path, handler: str, code: int) -> None:
    process, _ = Command(tmp_path, WAITS.format(handler=handler)).start(variables)
    process.terminate()
    assert process.wait(30) == code


def test_fork_dies_with_its_stand_in(variables: dict[str, str], tmp_path: Path) -> None:
    process, forked = Command(tmp_path, WAITS.format(handler="")).start(variables)
    assert forked != process.pid
    process.kill()
    wait_for(lambda: not Path(f"/proc/{forked}").exists(), 30)
    process.wait(30)


def test_death_of_the_client_kills_the_fork(variables: dict[str, str], tmp_path: Path) -> None:
    process, forked = Command(tmp_path, WAITS.format(handler="")).start(variables)
    os.kill(forked, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def test_other_commands_are_left_alone(variables: dict[str, str]) -> None:
    words = [sys.executable, "-c", "import os; print(os.getppid())"]
    assert int(subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout) == os.getpid()


def test_missing_server_is_an_error(tmp_path: Path, variables: dict[str, str]) -> None:
    ended = Command(tmp_path, "print('slow')").run({**variables, "FORK_SERVER": str(tmp_path / "none")})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "No such file or directory" in ended.stderr


@pytest.mark.slow
def test_ray_workers_use_the_configured_path(variables: dict[str, str], tmp_path: Path) -> None:
    """Ray names the folder of code that was uploaded to it in its worker's variables, which setup_worker.py sets."""
    uploaded = tmp_path / "uploaded"
    uploaded.mkdir()
    (uploaded / "uploaded_module.py").write_text("")
    script = "import sys, uploaded_module\nprint(uploaded_module.__file__, sys.argv[1:])\n"
    worker = Command(tmp_path, script, "default_worker.py")
    context = json.dumps({"env_vars": {"PYTHONPATH": f"{uploaded}:{variables['PYTHONPATH']}"}})
    expected = [f"--serialized-runtime-env-context={context}", "--language=PYTHON"]
    worker.words = [sys.executable, "setup_worker.py", worker.words[1], *expected, "--last"]
    assert worker.run(variables).stdout.split() == [str(uploaded / "uploaded_module.py"), "['--last']"]


@pytest.mark.slow
def test_ray_workers_draw_distinct_ids(variables: dict[str, str], tmp_path: Path) -> None:
    """Two that drew the same would write to the same object of Ray's store, and one of them would crash."""
    script = "import sys\nhad = 'ray.train.torch' in sys.modules\nimport ray\nprint(had, ray.ObjectRef.from_random())\n"
    worker = Command(tmp_path, script, "default_worker.py")
    first, second = (worker.run(variables).stdout.split() for _ in range(2))
    assert first[0] == second[0] == "True"
    assert first[1] != second[1]


def test_aborted_request_does_not_affect_others(variables: dict[str, str], tmp_path: Path) -> None:
    for sent in (b"", b'{"command"'):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(variables["FORK_SERVER"])
            socket.send_fds(client, [b"."], [0, 1, 2])
            client.sendall(sent)
    assert Command(tmp_path, "print('still here')").run(variables).stdout == "still here\n"


def test_exit_status_is_that_of_the_fork(tmp_path: Path) -> None:
    with fork_server(tmp_path / "socket", dict(os.environ), ()) as result:
        process, forked = Command(tmp_path, WAITS.format(handler="")).start({**os.environ, **result})
    wait_for(lambda: not Path(f"/proc/{forked}").exists(), 30)
    assert process.wait(30) == 1

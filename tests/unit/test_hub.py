"""Models of a hub, against a server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import reset_sessions

from jobs.evaluate.labels import short_label
from jobs.launch.inputs import locate_inputs
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import ModelError
from tinymusician.models.checkpoint_files import check_model
from tinymusician.models.hub import download, with_commit
from tinymusician.models.musicgen import load_musicgen, load_tokenizer, model_commit
from tinymusician.models.shape import RELEASED, shape_of
from tinymusician.recipe import load_recipe

COMMIT, OLDER = "a" * 40, "b" * 40


class Hub(BaseHTTPRequestHandler):
    """One model, `me/tiny`, with two revisions; other names get the answer that they say."""

    files: Path
    sent: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/me/tiny/revision/"):
            revision = self.path.rpartition("/")[2]
            commit = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}.get(revision)
            names = [{"rfilename": path.name} for path in sorted(self.files.iterdir())]
            if commit is None:
                self._refuse(404, "RevisionNotFound")
            else:
                self._send(json.dumps({"id": "me/tiny", "sha": commit, "siblings": names}).encode(), commit)
        elif self.path.startswith("/me/tiny/resolve/"):
            commit, name = self.path.removeprefix("/me/tiny/resolve/").split("/")
            self._send((self.files / name).read_bytes(), commit)
        else:
            code = {"gated": "GatedRepo", "private": "RepoNotFound", "absent": "RepoNotFound"}
            name = self.path.split("/")[4]
            self._refuse({"gated": 403, "private": 401, "absent": 404}.get(name, 500), code.get(name, ""))

    def _send(self, body: bytes, commit: str) -> None:
        self.send_response(200)
        for key, value in (("Content-Length", len(body)), ("ETag", f'"{hash(body)}"'), ("X-Repo-Commit", commit)):
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.sent.append(self.path)
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(tiny_musicgen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that the server has sent."""
    handler = type("Handler", (Hub,), {"files": tiny_musicgen, "sent": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    reset_sessions()  # an earlier test may have left one without a connection
    yield handler.sent
    reset_sessions()
    server.shutdown()
    server.server_close()


def test_a_model_and_its_revisions(hub: list[str]) -> None:
    newest, older = download("me/tiny"), download("me/tiny@v1")
    assert (newest.name, older.name) == (COMMIT, OLDER)
    assert download(f"me/tiny@{OLDER}") == older
    assert (model_commit("me/tiny"), model_commit("me/tiny@v1")) == (COMMIT, OLDER)
    assert model_commit(str(older)) is None
    count = len(hub)
    assert load_musicgen("me/tiny@v1").config.decoder.num_codebooks == 4
    assert load_tokenizer("me/tiny")("a reel")["input_ids"]
    assert not [path for path in hub[count:] if "/resolve/" in path], "files are downloaded once"


def test_a_submission_pins_the_commit(hub: list[str], tmp_path: Path) -> None:
    """Of a branch or tag; without a connection, the one in the cache; what nothing can tell stays, with a message."""
    lines: list[str] = []

    def located(name: str) -> str:
        recipe = load_recipe("band", (f"evaluate.clap={name}",))
        return str(locate_inputs(LocalStore(tmp_path / "store"), recipe, "evaluate", lines.append).evaluate.clap)

    assert located("me/tiny") == located(f"me/tiny@{COMMIT}") == f"me/tiny@{COMMIT}"
    assert located("me/tiny@v1") == f"me/tiny@{OLDER}"
    assert not [path for path in hub if "/resolve/" in path], "nothing is downloaded"
    assert short_label(located("me/tiny")) == "tiny@aaaaaaaa"
    assert located("me/private") == "me/private"
    assert lines[-1].startswith("evaluate.clap: is not pinned to a commit, as model 'me/private': the hub answers 401")


@pytest.mark.usefixtures("hub")
def test_without_a_connection_the_commit_is_that_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    download(with_commit("me/tiny"))  # as workers do: no name of a branch is in the cache
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_sessions()
    assert with_commit("me/tiny") == f"me/tiny@{COMMIT}"
    assert download(with_commit("me/tiny")).name == COMMIT
    for name in ("me/other", "me/tiny@v1", "no/hub/id"):
        with pytest.raises(ModelError, match=f"model '{name}': "):
            with_commit(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/gated", r"is gated; accept its terms on http://.*/me/gated, and log in"),
        ("me/private", "the hub answers 401: no such model, or a private one"),
        ("me/absent", "the hub answers 404: no such model"),
        ("me/tiny@v9", "has no revision v9; http://.*/me/tiny/tree/main lists them"),
        ("me/broken", "the hub answers 500; try again later"),
        ("me//x", "cannot be downloaded .*Repo id"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_the_hub_refuses(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        download(name)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("hub")
def test_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is used; the rest is one line."""
    folder = download("me/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert download("me/tiny") == folder
    with pytest.raises(ModelError, match=r"hub cannot be reached \(\[Errno 111\] Connection refused\); download"):
        download("me/other")


@pytest.mark.usefixtures("hub")
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ModelError, match=r"the disk of .*cache is full; free some of it, or set HF_HOME"):
        download("me/tiny")


@pytest.mark.usefixtures("hub")
def test_a_full_disk_while_xet_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """hf_xet raises a RuntimeError with the system's words."""

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Data processing error: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ModelError, match=r"the disk of .*cache is full"):
        download("me/tiny")


@pytest.mark.usefixtures("hub")
def test_a_model_without_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only pickles are on the hub, or a download ended early."""
    monkeypatch.setattr("tinymusician.models.hub.FILES", ("*.json",))
    with pytest.raises(ModelError, match=r"has no safetensors on the hub, .*`hf download me/tiny --local-dir FOLDER`"):
        download("me/tiny")


def test_the_kind_of_a_cached_model_is_checked(hub: list[str]) -> None:
    """By `--dry-run`, which requests nothing."""
    folder = download("me/tiny")
    count = len(hub)
    check_model("me/tiny")
    check_model("me/other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()  # a link to the cache's blob
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "musicgen_melody"}))
    with pytest.raises(ModelError, match="'me/tiny': is conditioned on melodies"):
        check_model("me/tiny")
    assert len(hub) == count


def test_a_revision_of_a_released_model_has_its_shape() -> None:
    assert shape_of("facebook/musicgen-small@v1") == RELEASED["facebook/musicgen-small"]

"""Inputs by address: imported once, fetched once per machine, verified, within the cache's limit."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import multiprocessing
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.inputs import import_remote_inputs, locate_inputs, upload_inputs
from jobs.launch.prepare import with_sampling_defaults
from jobs.launch.validate import with_loaded_plan
from jobs.worker.model_refs import parse_label
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.import_input import UNKNOWN_LICENCE, import_address, import_path
from tinymusician.artifacts.local_cache import LIMIT_VARIABLE, LocalCache
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.run_state import RunRecord, now
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.store import LocalStore
from tinymusician.data.prompts import load_prompts
from tinymusician.errors import DataError, DigestMismatchError, ModelError, RecipeError, StoreError
from tinymusician.inputs import input_path
from tinymusician.models.licence import HOUSE_BAND_LICENCE, MUSICGEN_LICENCE, audio_lm_licence, inherited_licence
from tinymusician.models.shape import WEIGHTS, sampling_defaults, shape_of
from tinymusician.recipe import load_recipe


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """The default store, with caches in the same temporary folder."""
    monkeypatch.setenv("TMCTL_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return LocalStore(tmp_path / "store")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a flute\na piano\na drum\n")
    return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its address over HTTP."""
    (folder := tmp_path / "site").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def presigned(prompts: Path) -> Iterator[str]:
    """The address of a file that a server sends to those who have its signature."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_signed = self.path == "/p.txt?X-Amz-Signature=secret"
            self.send_response(200 if is_signed else 403)
            self.end_headers()
            self.wfile.write(prompts.read_bytes() if is_signed else b"AccessDenied")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/p.txt"
        server.shutdown()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestImport:
    def test_a_model_is_the_same_model(self, store: LocalStore, tmp_path: Path) -> None:
        """Shape, sampling defaults and files of an imported model are those of its folder; links are followed."""
        (folder := tmp_path / "link").mkdir()
        for path in (WEIGHTS / "band-small").iterdir():
            (folder / path.name).symlink_to(path)
        manifest = import_path(store, folder, "mine", "here")
        assert manifest.kind == "model"
        assert shape_of(manifest.reference) == shape_of("band-small")
        assert sampling_defaults(manifest.reference) == sampling_defaults("band-small")
        assert not (tmp_path / "cache").exists(), "a look at its configuration downloads nothing"
        local = input_path(manifest.reference)
        for path in (WEIGHTS / "band-small").iterdir():
            assert (local / path.name).read_bytes() == path.read_bytes()

    def test_linked_folders_come_and_drafts_do_not(self, store: LocalStore, tmp_path: Path) -> None:
        (tmp_path / "clips").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "clips" / ".draft-1-2-x").write_text("half")
        (tmp_path / "other" / "a.wav").write_text("a")
        (tmp_path / "clips" / "linked").symlink_to(tmp_path / "other")
        manifest = import_path(store, tmp_path / "clips", "clips", "here")
        assert [file.path for file in manifest.files] == ["linked/a.wav"]

    def test_same_content_is_the_same_artifact(self, store: LocalStore, prompts: Path) -> None:
        first = import_path(store, prompts, "prompts", "here")
        assert import_path(store, prompts, "prompts", "there") == first
        prompts.write_text("a flute\na piano\na harp\n")
        assert import_path(store, prompts, "prompts", "here") != first
        assert [one.text for one in load_prompts(first.reference)] == ["a flute", "a piano", "a drum"]

    def test_the_name_of_a_student_is_refused(self, store: LocalStore, prompts: Path) -> None:
        student = Manifest(
            name="band", kind="student", created=now(), files=(), recipe={}, lineage={}, metrics={}, licence="x"
        )
        store.put(student.key, student.canonical())
        with pytest.raises(StoreError, match="is the name of a student"):
            import_path(store, prompts, "band", "here")

    def test_licences(self, store: LocalStore, tmp_path: Path) -> None:
        """A model card's or the given licence goes on to what is derived; without one, it is taken for MusicGen's."""
        (folder := tmp_path / "model").mkdir()
        (folder / "config.json").write_text("{}")
        silent = import_path(store, folder, "silent", "here")
        assert silent.licence == UNKNOWN_LICENCE
        assert inherited_licence([silent.reference]) == MUSICGEN_LICENCE
        (folder / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [music]\n---\n# A model\n")
        assert inherited_licence([import_path(store, folder, "card", "here").reference]) == "cc-by-4.0"
        named = import_path(store, folder, "named", "here", "MIT").reference
        assert inherited_licence([named]) == "MIT"
        assert audio_lm_licence([named, "band-mu"]) == f"{HOUSE_BAND_LICENCE} and MIT"
        assert audio_lm_licence(["owner/name"]) == f"{HOUSE_BAND_LICENCE} and the licence of a model that states none"
        (folder / "manifest.json").write_text('{"licence": "Apache-2.0"}')
        assert import_path(store, folder, "bundle", "", None).licence == "Apache-2.0", "a bundle's manifest states it"


class TestAddresses:
    def test_http_needs_a_digest_and_has_to_match_it(
        self, store: LocalStore, prompts: Path, site: tuple[Path, str]
    ) -> None:
        folder, url = site
        (folder / "p.txt").write_bytes(prompts.read_bytes())
        with pytest.raises(StoreError, match="is not encrypted; give its digest"):
            import_address(store, f"{url}/p.txt", "p")
        with pytest.raises(DigestMismatchError, match="is expected"):
            import_address(store, f"{url}/p.txt#sha256={'0' * 64}", "p")
        assert not list(store.list("artifacts/")), "nothing is half imported"
        manifest = import_address(store, f"{url}/p.txt#sha256={digest(prompts)}", "p")
        assert input_path(manifest.reference).read_text() == prompts.read_text()

    @pytest.mark.parametrize("kind", ["zip", "tar.gz"])
    def test_archives(self, store: LocalStore, site: tuple[Path, str], kind: str) -> None:
        """An archive becomes a folder; one with a single folder becomes that one."""
        folder, url = site
        path = folder / f"clips.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("clips/a.txt", "a flute")
        else:
            with tarfile.open(path, "w:gz") as tar:
                info = tarfile.TarInfo("clips/a.txt")
                info.size = 7
                tar.addfile(info, io.BytesIO(b"a flute"))
        manifest = import_address(store, f"{url}/{path.name}#sha256={digest(path)}", "clips")
        assert [file.path for file in manifest.files] == ["a.txt"]
        assert (input_path(manifest.reference) / "a.txt").read_text() == "a flute"

    @pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt"])
    def test_archives_that_leave_their_folder(self, store: LocalStore, site: tuple[Path, str], name: str) -> None:
        folder, url = site
        with tarfile.open(folder / "bad.tar", "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
            tar.addfile(tarfile.TarInfo("fine.txt"))
        address = f"{url}/bad.tar#sha256={digest(folder / 'bad.tar')}"
        if name.startswith("/"):  # becomes a relative path
            assert all(not file.path.startswith("/") for file in import_address(store, address, "bad").files)
        else:
            with pytest.raises(StoreError, match="cannot be unpacked"):
                import_address(store, address, "bad")

    def test_secrets_of_an_address_are_sent_and_neither_stored_nor_shown(
        self, store: LocalStore, presigned: str, prompts: Path
    ) -> None:
        address, shown = f"{presigned}?X-Amz-Signature=secret", list[str]()
        for url in (address, f"{address}#sha256={'0' * 64}", f"{presigned}?X-Amz-Signature=secret2#sha256=0"):
            with pytest.raises(StoreError) as refused:
                import_address(store, url, "p", on_progress=shown.append)
            shown.append(str(refused.value))
        manifest = import_address(store, f"{address}#sha256={digest(prompts)}", "p", on_progress=shown.append)
        assert manifest.lineage == {"source": presigned}
        assert [file.path for file in manifest.files] == ["p.txt"]
        assert shown
        assert not [line for line in shown if "secret" in line]

    @pytest.mark.slow
    def test_keys_of_objects_are_taken_as_they_are(
        self, s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With `#`, `?` and `%`; what marks a folder is no object; a change is not taken for what was read."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        s3_store.put("take #1?/50%/a.txt", b"right")
        s3_store.put("take /a.txt", b"wrong")
        s3_store._client.put_object(Bucket=s3_store._bucket, Key=s3_store._key("take #1?") + "/50%/", Body=b"")
        store = LocalStore(tmp_path / "store")
        address = f"{s3_store.url}/take #1?/50%"
        manifest = import_address(store, address, "take")
        assert [file.path for file in manifest.files] == ["a.txt"]
        (note,) = store.list("imports/")
        planted = {"artifact": f"take@sha256:{'0' * 64}", "objects": note.key[8:-5]}
        store.put(note.key, json.dumps(planted).encode())  # by somebody who can write to the store
        assert import_address(store, address, "take") == manifest
        assert import_address(store, address, "other").name == "other"

        def replace_meanwhile(line: str) -> None:
            s3_store.put("take #1?/50%/b.txt", b"new")

        s3_store.put("take #1?/50%/a.txt", b"x" * 100_000_000)
        with pytest.raises(StoreError, match="has changed while it was imported"):
            import_address(store, address, "take", on_progress=replace_meanwhile)

    @pytest.mark.slow
    def test_s3_folder_is_imported_by_the_job(
        self, s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its address stays until the job runs, which imports it once; a changed object makes another artifact."""
        monkeypatch.setenv("TMCTL_STORE", s3_store.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        for path in (WEIGHTS / "band-small").iterdir():
            s3_store.upload(path, f"models/teacher/{path.name}")
        s3_store.put("models/teacher-2/config.json", b"{}")
        address = f"{s3_store.url}/models/teacher"
        recipe = load_recipe("band", (f"teacher.model={address}", "student.layers=[0]"))
        located = locate_inputs(s3_store, recipe, "distill", print)
        assert located.teacher.model == address
        assert (
            with_sampling_defaults(located).teacher.guidance_scale == sampling_defaults("band-small")["guidance_scale"]
        )
        run = RunStore(s3_store, "run-1")
        run.write_record(record(located.model_dump(mode="json")))
        import_remote_inputs(run, lambda line: None)
        reference = run.record().recipe["teacher"]["model"]
        assert reference.startswith("input-teacher@sha256:")
        assert sorted(path.name for path in input_path(reference).iterdir()) == sorted(
            path.name for path in (WEIGHTS / "band-small").iterdir()
        )
        assert locate_inputs(s3_store, recipe, "distill", print).teacher.model == reference, "the next run finds it"
        s3_store.put("models/teacher/README.md", b"changed")
        assert locate_inputs(s3_store, recipe, "distill", print).teacher.model == address
        with pytest.raises(RecipeError, match=r"teacher.model = .*/nothing': .*no such object"):
            locate_inputs(s3_store, load_recipe("band", (f"teacher.model={s3_store.url}/nothing",)), "distill", print)


def record(recipe: dict[str, Any]) -> RunRecord:
    return RunRecord(
        id="run-1",
        kind="distill",
        recipe=recipe,
        workers=1,
        created=now(),
        versions={},
        git={"commit": "x"},
        seeds={},
        cluster="c",
        submission="s",
        user="u",
        host="h",
    )


class TestSubmission:
    def test_paths_are_absolute_here_and_artifacts_elsewhere(
        self, store: LocalStore, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        recipe = load_recipe("band", ("sequences.prompts=prompts.txt", "evaluate.clap=./absent"))
        located = locate_inputs(store, recipe, "distill", print)
        assert located.sequences.prompts == str(prompts)
        assert located.teacher.model_fields_set == recipe.teacher.model_fields_set
        assert located.evaluate.clap == "./absent", "a distillation reads none of it"
        uploaded = upload_inputs(store, located, "distill", lambda line: None)
        assert uploaded.sequences.prompts.startswith("input-prompts@sha256:")
        assert uploaded.teacher.model == located.teacher.model == "band-large"
        assert load_prompts(uploaded.sequences.prompts) == load_prompts(str(prompts))
        assert locate_inputs(store, uploaded, "distill", print) == uploaded

    def test_labels_of_folders_of_audio(self, store: LocalStore, tmp_path: Path) -> None:
        (tmp_path / "takes").mkdir()
        (tmp_path / "takes" / "a.wav").write_bytes(b"x")
        recipe = load_recipe("band", (f"evaluate.audio=['{tmp_path / 'takes'}', 'mine={tmp_path / 'takes'}']",))
        audio = upload_inputs(store, locate_inputs(store, recipe, "evaluate", print), "evaluate", print).evaluate.audio
        assert [entry.partition("@")[0] for entry in audio] == ["takes=input-takes", "mine=input-takes"]

    def test_addresses_have_no_labels(self) -> None:
        for name in ("https://h/c.tar.gz#sha256=00", "s3://b/split=test/x"):
            assert parse_label(name) == ("", name)
            assert parse_label(f"mine={name}") == ("mine", name)

    def test_plans(self, store: LocalStore, tmp_path: Path) -> None:
        """A plan's file by path, or as an artifact, is in the recipe of the job; names of packaged plans stay."""
        (plan := tmp_path / "mine.yaml").write_text("name: mine\ndefault: int8\n")
        reference = import_path(store, plan, "plan", "here").reference
        for name in (str(plan), reference, "plan"):
            recipe = locate_inputs(store, load_recipe("band", (f"quantize.plan={name}",)), "quantize", print)
            loaded = with_loaded_plan(recipe).quantize.plan
            assert isinstance(loaded, dict)
            assert loaded["name"] == "mine"
        packaged = load_recipe("band", ("quantize.plan=paper",))
        assert with_loaded_plan(locate_inputs(store, packaged, "quantize", print)) == packaged

    def test_artifacts_get_their_digests(self, store: LocalStore) -> None:
        manifest = import_path(store, WEIGHTS / "band-small", "small", "here")
        recipe = locate_inputs(store, load_recipe("band", ("teacher.model=small",)), "distill", print)
        assert recipe.teacher.model == manifest.reference

    def test_absent_names_are_answered_with_what_is_allowed(self, store: LocalStore) -> None:
        with pytest.raises(ModelError, match="model 'absent': allowed are a folder, a hub id"):
            locate_inputs(store, load_recipe("band", ("teacher.model=absent",)), "distill", print)

    @pytest.mark.parametrize("name", ["./absent", "/absent/model", "absent@sha256:abcdef"])
    def test_absent_inputs(self, store: LocalStore, name: str) -> None:
        with pytest.raises(RecipeError, match=r"teacher\.model = "):
            locate_inputs(store, load_recipe("band", (f"teacher.model={name}",)), "distill", print)

    def test_a_path_of_the_nodes_stays_and_its_absence_names_the_node(self, store: LocalStore) -> None:
        recipe = load_recipe("band", ("sequences.prompts=file:///absent/p.txt",))
        assert locate_inputs(store, recipe, "distill", print) == recipe
        with pytest.raises(DataError, match=r"node \S+: file:///absent/p.txt: no such file"):
            load_prompts(recipe.sequences.prompts)


def write_once(path: Path, content: bytes, calls: Path) -> None:
    with calls.open("a") as file:
        file.write("x")
    path.write_bytes(content)


def get_in_process(folder: Path, calls: Path, start: Any) -> None:
    start.wait()
    LocalCache(folder, 10_000).get("entry", 4, lambda path: write_once(path, b"data", calls), pin=True)


class TestCache:
    def test_two_processes_download_once(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        start, calls = context.Barrier(2), tmp_path / "calls"
        workers = [context.Process(target=get_in_process, args=(tmp_path / "cache", calls, start)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert calls.read_text() == "x"
        assert (tmp_path / "cache" / "entry").read_bytes() == b"data"

    def test_the_least_recently_used_goes(self, tmp_path: Path) -> None:
        cache = LocalCache(tmp_path, 100)
        for name in ("a", "b"):
            cache.get(name, 40, lambda path: path.write_bytes(b"x" * 40) and None)
        os.utime(tmp_path / ".locks" / "b", (1, 1))
        cache.get("c", 40, lambda path: path.write_bytes(b"x" * 40) and None)
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a", "c"]

    def test_what_is_in_use_stays(self, tmp_path: Path) -> None:
        cache = LocalCache(tmp_path, 100)
        cache.get("pinned", 60, lambda path: path.write_bytes(b"x" * 60) and None, pin=True)
        cache.get("other", 60, lambda path: path.write_bytes(b"x" * 60) and None)
        assert (tmp_path / "pinned").exists()

    def test_what_a_killed_process_left_goes_too(self, tmp_path: Path) -> None:
        cache = LocalCache(tmp_path, 100)

        def die(path: Path) -> None:
            path.write_bytes(b"x" * 60)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.get("left", 60, die)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["left.part"]
        cache.get("new", 60, lambda path: path.write_bytes(b"x" * 60) and None)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["new"]

    def test_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"node \S+: big has 1e\+03 GB, and the cache .* holds at most 1e-07"):
            LocalCache(tmp_path, 100).get("big", 10**12, lambda path: None)
        with pytest.raises(StoreError, match=r"has \S+ GB free, and big needs 1e\+09"):
            LocalCache(tmp_path, 10**19).get("big", 10**18, lambda path: None)

    def test_an_interrupted_fetch_goes_on(
        self, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that the store lost stops the fetch; the next one downloads only what is not there."""
        (folder := tmp_path / "in").mkdir()
        for name in ("a", "b"):
            (folder / name).write_text(name)
        manifest = import_path(store, folder, "two", "here")
        last = blob_key(manifest.files[1].sha256)
        data = store.get(last)
        store.delete(last)
        with pytest.raises(StoreError):
            input_path(manifest.reference)
        store.put(last, data)
        store.delete(blob_key(manifest.files[0].sha256))
        assert (input_path(manifest.reference) / "a").read_text() == "a"

    def test_a_damaged_file_never_appears(self, store: LocalStore, tmp_path: Path, prompts: Path) -> None:
        manifest = import_path(store, prompts, "p", "here")
        store.put(blob_key(manifest.files[0].sha256), b"other")
        with pytest.raises(DigestMismatchError):
            input_path(manifest.reference)
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.name == "prompts.txt"]

    @pytest.mark.parametrize("limit", ["many", "-1", "nan", "inf", "0"])
    def test_a_limit_that_is_none(
        self, store: LocalStore, prompts: Path, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        monkeypatch.setenv(LIMIT_VARIABLE, limit)
        with pytest.raises(StoreError, match=f"{LIMIT_VARIABLE} '{limit}': a positive number of gigabytes"):
            input_path(import_path(store, prompts, "p", "here").reference)

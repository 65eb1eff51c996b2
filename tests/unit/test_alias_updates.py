"""An endpoint that follows an alias: it loads new bundles without a dropped request, and rejects invalid ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import requests

from serve.config import read_config
from serve.engine_replica import EngineReplica
from tests.endpoint import Endpoint, endpoint
from tests.ray_cluster import wait_for
from tests.world import World
from tinymusician.artifacts.manifest import publish
from tinymusician.errors import StoreError
from tinymusician.runtime.bundle import describe_files, read_manifest
from tinymusician.runtime.bundle_manifest import BundleManifest

MARCH = "a happy march"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Publisher:
    """Releases variants of a bundle as band@stable."""

    def __init__(self, world: World, bundle: Path) -> None:
        self.world, self.bundle, self.made = world, bundle, 0

    def release(self, damage: str = "", **sampling: Any) -> str:
        """The manifest's digest of the new release; `damage` makes one that opens, but cannot play."""
        self.made += 1
        folder = self.world.folder / f"bundle-{self.made}"
        shutil.copytree(self.bundle, folder)
        if damage:
            getattr(self, damage)(folder)
        manifest = read_manifest(folder)
        roles = [(file.path, file.role, file.dtype) for file in manifest.files]
        fresh = {"files": describe_files(folder, roles), "sampling": manifest.sampling.model_copy(update=sampling)}
        altered = BundleManifest.model_validate({**manifest.model_dump(), **_plain(fresh)})
        (folder / "manifest.json").write_text(altered.model_dump_json())
        facts: dict[str, Any] = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "Apache-2.0"}
        made = publish(self.world.store, folder, name="band", kind="bundle", **facts)
        self.world.registry.release(made, "stable", {})
        import hashlib

        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()

    @staticmethod
    def no_graph(folder: Path) -> None:
        (folder / "decoder.onnx").write_bytes(b"no graph at all")

    @staticmethod
    def no_numbers(folder: Path) -> None:
        """Weights of the decoder that are not numbers: it loads, and plays nothing."""
        graph = onnx.load(folder / "decoder.onnx")
        for weight in graph.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), weight.name))
        onnx.save(graph, folder / "decoder.onnx")

    @staticmethod
    def panicking_tokenizer(folder: Path) -> None:
        """A table that is none: the Rust code of tokenizers panics while it reads the file."""
        change_tokenizer(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": "////f2p1bms="})

    @staticmethod
    def panicking_encoder(folder: Path) -> None:
        """A template with a token that it does not define: the Rust code panics at the first prompt."""
        single = [{"SpecialToken": {"id": "[NONE]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [{"Sequence": {"id": "A", "type_id": 0}}]
        template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}
        change_tokenizer(folder, post_processor=template)


def change_tokenizer(folder: Path, **parts: object) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {"files": [file.model_dump() for file in values["files"]], "sampling": values["sampling"].model_dump()}


@pytest.fixture
def publisher(world: World, bundle: Path) -> Publisher:
    return Publisher(world, bundle)


def settings(world: World) -> dict[str, Any]:
    store = (world.folder / "store").absolute().as_uri()
    return {"model": "band@stable", "sources": [store], "root_key": world.pinned, "poll_interval_s": 0.2, "threads": 1}


@pytest.fixture
def first(publisher: Publisher) -> str:
    return publisher.release()


@pytest.fixture
def here(first: str, world: World) -> Iterator[Endpoint]:
    with endpoint(**settings(world)) as result:
        yield result


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Callable[[str, int], bool]:
    """Whether the logs have told of something so many times by now."""
    output = ""

    def has_event(event: str, times: int) -> bool:
        nonlocal output
        output += capsys.readouterr().err
        return output.count(event) >= times

    return has_event


def playing(here: Endpoint) -> tuple[str, int]:
    (model,) = requests.get(f"{here.url}/v1/models", timeout=10).json()["data"]
    assert model["id"] == "band@stable"
    return model["digest"], model["version"]


def begins_with(world: World) -> str:
    """What an engine plays that begins now."""
    with contextlib.closing(EngineReplica(read_config(settings(world)))) as replica:
        return asyncio.run(replica.about()).digest


def test_new_release_is_loaded_without_dropped_requests(here: Endpoint, publisher: Publisher, first: str) -> None:
    assert playing(here) == (first, 1)
    alone = here.generate(prompt=MARCH, seconds=30, seed=3).content
    with here.opened(prompt=MARCH, seconds=30, seed=3) as answer:
        parts = answer.iter_content(200)
        first_chunk = next(parts)
        second = publisher.release(temperature=0.5)
        wait_for(lambda: playing(here) == (second, 2), 30)
        assert answer.headers["X-Bundle"] == first
        assert first_chunk + b"".join(parts) == alone
    after = here.generate(prompt=MARCH)
    assert (after.headers["X-Bundle"], after.headers["X-Bundle-Version"]) == (second, "2")


def test_a_download_goes_on_after_the_bundle_is_replaced(here: Endpoint, publisher: Publisher, first: str) -> None:
    """Piece by piece, as Ray's proxy has them; until the installation drops the bundle."""
    address = f"{here.url}/v1/bundles/{first}/tokenizer.json"
    whole = requests.get(address, timeout=10).content
    start = requests.get(address, headers={"Range": "bytes=0-9"}, timeout=10).content
    second = publisher.release(temperature=0.5)
    wait_for(lambda: playing(here) == (second, 2), 30)
    rest = requests.get(address, headers={"Range": "bytes=10-"}, timeout=10)
    assert (rest.status_code, start + rest.content) == (206, whole)
    third = publisher.release(temperature=0.6)
    wait_for(lambda: playing(here) == (third, 3), 30)
    assert requests.get(address, timeout=10).status_code == 404
    assert requests.get(f"{here.url}/v1/bundles/{second}/tokenizer.json", timeout=10).content == whole


@pytest.mark.parametrize("damage", ["no_graph", "no_numbers"])
def test_invalid_bundle_is_rejected_and_the_previous_one_stays(
    here: Endpoint, publisher: Publisher, world: World, first: str, damage: str, logged: Callable[[str, int], bool]
) -> None:
    publisher.release(damage)
    wait_for(lambda: logged("bundle_rejected", 1), 30)
    assert playing(here) == (first, 1)
    assert here.generate(prompt=MARCH).status_code == 200
    assert begins_with(world) == first
    third = publisher.release(temperature=0.7)
    wait_for(lambda: playing(here) == (third, 3), 30)


def test_two_invalid_bundles_leave_the_valid_one(
    here: Endpoint, publisher: Publisher, world: World, first: str, logged: Callable[[str, int], bool]
) -> None:
    for number, damage in enumerate(("no_graph", "no_numbers", "panicking_tokenizer", "panicking_encoder"), 1):
        publisher.release(damage)
        wait_for(lambda: logged("bundle_rejected", number), 30)  # noqa: B023 — called at once
    assert playing(here) == (first, 1)
    asyncio.run(here.replica.check_health())
    third = publisher.release(temperature=0.7)
    wait_for(lambda: playing(here) == (third, 6), 30)
    first = third
    tokenizer = requests.get(f"{here.url}/v1/bundles/{first}/tokenizer.json", timeout=10)
    assert tokenizer.status_code == 200
    assert begins_with(world) == first


def test_bundle_with_invalid_defaults_is_rejected(
    here: Endpoint, publisher: Publisher, first: str, logged: Callable[[str, int], bool]
) -> None:
    publisher.release(temperature=0.005)
    wait_for(lambda: logged("bundle_rejected", 1), 30)
    assert playing(here) == (first, 1)
    third = publisher.release(temperature=0.7)
    wait_for(lambda: playing(here) == (third, 3), 30)


def test_pulled_bundle_runs_without_the_store(here: Endpoint, world: World, first: str) -> None:
    shutil.rmtree(world.folder / "store")
    assert here.generate(prompt=MARCH).status_code == 200
    assert begins_with(world) == first


def test_without_a_store_and_without_a_bundle_there_is_an_error(world: World) -> None:
    with pytest.raises(StoreError), endpoint(**settings(world)):
        pass


def test_a_root_key_of_the_environment_is_sent_to_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's processes have another environment, so a value that equals it is no default that may be left out."""
    monkeypatch.setenv("TMCTL_ROOT_KEY", "ab")
    assert read_config({"model": "band@stable"}).model_dump(exclude_defaults=True)["root_key"] == "ab"
    assert read_config({"model": "band@stable", "root_key": "cd"}).root_key == "cd"

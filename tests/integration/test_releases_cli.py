"""Releases on the command line, with plots and errors. Nothing here starts Ray."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_cli import tmctl
from tinymusician.artifacts.attestations import ArtifactAttestation, attest
from tinymusician.artifacts.manifest import Manifest, publish
from tinymusician.artifacts.store import LocalStore
from tinymusician.recipe import load_recipe

pytestmark = pytest.mark.slow


class Person:
    """Somebody with a store, keys and a command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, LocalStore(folder / "store")
        self._variables = {"TMCTL_KEYS": str(folder / "keys")}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return tmctl(self.folder, *words, cwd=self.folder, **self._variables)

    def says(self, *words: str) -> str:
        ended = self.run(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def tmctl_json(self, *words: str) -> Any:
        return json.loads(self.says(*words, "--json"))

    def refused(self, *words: str) -> str:
        """The one line of a command that must fail."""
        ended = self.run(*words)
        assert (ended.returncode, ended.stdout) == (1, ""), ended.stdout
        (line,) = ended.stderr.strip().splitlines()
        assert line.startswith("error: ")
        return line

    def made(self, name: str, kind: str, content: dict[str, str], **lineage: Any) -> Manifest:
        folder = self.folder / f"made-{len(list(self.folder.glob('made-*')))}"
        folder.mkdir()
        for path, text in content.items():
            (folder / path).write_text(text)
        recipe = load_recipe("band").model_dump(mode="json")
        facts: dict[str, Any] = {"recipe": recipe, "metrics": {"size": 3}, "licence": "Apache-2.0"}
        made = publish(self.store, folder, name=name, kind=kind, lineage=lineage, **facts)
        attest(
            self.store, ArtifactAttestation(artifact=made.reference, created=made.created, publish=recipe["publish"])
        )
        return made


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def test_from_keys_to_a_device_and_back(person: Person) -> None:
    student = person.made("band", "student", {"model": "s"}, teacher="band-large", run="r-1")
    first = person.made("band-bundle", "bundle", {"decoder": "d1", "codec": "c"}, model=student.reference, run="r-2")
    assert "`tmctl signing-keys create`" in person.refused("artifacts", "publish", "band-bundle")
    root = person.tmctl_json("signing-keys", "create")["root"][0]
    assert "has keys already" in person.refused("signing-keys", "create")
    assert person.tmctl_json("signing-keys", "show")["root"] == [root]
    assert person.tmctl_json("artifacts", "publish", "band-bundle")["artifact"] == first.reference

    promote = ("artifacts", "promote", "band-bundle@candidate")
    assert "evaluation: it has none. Nothing was promoted; --override REASON" in person.refused(*promote)
    assert person.tmctl_json(*promote, "--override", "by ear")["about"]["why"]["overridden"] == "by ear"
    pull = ("pull", "band-bundle@stable", "--to", "phone")
    assert "has no root key yet; give the publisher's (--root-key)" in person.refused(*pull)
    assert person.tmctl_json(*pull, "--root-key", root)["version"] == 1

    second = person.made("band-bundle", "bundle", {"decoder": "d22", "codec": "c"}, model=student.reference, run="r-3")
    person.says("artifacts", "publish", second.reference)
    changed = person.tmctl_json("artifacts", "diff", "band-bundle@stable", "band-bundle@candidate")
    assert changed == {"files": {"codec": "same", "decoder": "changed"}, "download_bytes": 3}
    assert person.tmctl_json("artifacts", "show", "band-bundle@stable")["digest"] == first.digest
    assert person.tmctl_json(*pull, "--check")["new"] is False
    person.says(*promote, "--override", "by ear again")
    offer = person.tmctl_json(*pull, "--check")
    assert (offer["new"], offer["download_bytes"], offer["version"]) == (True, 3, 2)
    person.says(*pull)
    assert (person.folder / person.tmctl_json(*pull)["folder"] / "decoder").read_text() == "d22"

    rollback = ("artifacts", "rollback", "band-bundle@stable", "--reason", "it hisses")
    assert "has versions 1, 2" in person.refused(*rollback, "--to", "7")
    person.says(*rollback, "--to", "1")
    assert (person.folder / person.tmctl_json(*pull)["folder"] / "decoder").read_text() == "d1"
    person.says("signing-keys", "rotate")
    assert person.tmctl_json(*pull)["version"] == 4, "the rotation signed it again"
    history = person.says("artifacts", "history", "band-bundle@stable")
    assert "band-bundle@candidate, version 1, although gates failed: by ear\n" in history
    assert "back to version 1: it hisses" in history
    (aliased,) = [one for one in person.tmctl_json("artifacts", "aliases") if one["alias"] == "stable"]
    assert (aliased["version"], aliased["artifact"]) == (4, first.reference)
    assert person.tmctl_json("artifacts", "gc") == {
        "artifacts": [],
        "attestations": [],
        "shards": [],
        "blobs": [],
        "bytes": 0,
        "removed": 0,
    }
    assert "has no presigned addresses; S3 has" in person.refused("artifacts", "presign", "band-bundle@stable")


def test_origin_of_a_model(person: Person) -> None:
    data = {"prompts": "captions", "prompts_sha256": "abcdefabcdef"}
    made = {"git": {"commit": "0123456789abcdef", "changed": "yes"}, "versions": {"torch": "2.13.0"}}
    student = person.made("band", "student", {"model": "s"}, teacher="band-large", run="r-1", **data, **made)
    bundle = person.made("band-bundle", "bundle", {"decoder": "d"}, model=student.reference, run="r-2")
    result = person.tmctl_json("artifacts", "lineage", "band", "--picture", "lineage.svg")
    assert [(step["source"], step["derived"]) for step in result["sources"]] == [("band-large", student.reference)]
    assert [(step["source"], step["derived"]) for step in result["derived"]] == [(student.reference, bundle.reference)]
    (about,) = result["provenance"].values()
    assert about["recipe"] == "band"
    assert about["code"].startswith("0123456789ab, with changes")
    assert about["data"] == "captions sha256:abcdefab"
    assert about["environment"] == "torch 2.13.0"
    picture = (person.folder / "lineage.svg").read_text()
    for said in (
        "band-large",
        f"band@{student.digest[:8]}, student",
        f"band-bundle@{bundle.digest[:8]}, bundle",
        "r-2",
    ):
        assert f"<!-- {said} -->" in picture
    assert "allowed are files that end in .svg" in person.refused("artifacts", "lineage", "band", "--picture", "x.gif")
    card = person.says("artifacts", "card", "band-bundle")
    assert "# band-bundle" in card
    assert "| licence | Apache-2.0 |" in card


def test_create_says_where_the_keys_are(person: Person) -> None:
    text = person.says("signing-keys", "create")
    assert f"private keys in {person.folder / 'keys'}: move root-* to a machine or medium that is offline" in text

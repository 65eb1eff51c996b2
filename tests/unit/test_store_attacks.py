"""An attacker with write access to the whole store, and no private key: nothing is signed or pulled because of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobs.distill import precompute
from jobs.pipeline import Pipeline
from jobs.registry import JobKind
from jobs.release import promote, publish, publish_config, release_metrics, released_config
from jobs.sign_result import made_by, sign_result
from tests.unit.test_runs import record
from tests.world import World
from tinymusician.artifacts import manifest as manifests
from tinymusician.artifacts.attestations import (
    ArtifactAttestation,
    EvaluationFigures,
    attestation_key,
    attestation_of,
    figures_key,
    write_figures,
)
from tinymusician.artifacts.envelope import seal_bytes
from tinymusician.artifacts.manifest import Manifest, find
from tinymusician.artifacts.run_state import RunResult
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import KeyFileError, NotFoundError, StoreError, UntrustedError
from tinymusician.recipe import PublishConfig, load_recipe

GOOD = {"clap": 0.5, "fad": 0.2, "bytes": 400, "degenerate": 0, "quiet": 0.02}
BASELINE = {"clap": 0.5, "fad": 0.2, "bytes": 1000, "degenerate": 0, "quiet": 0.02}
LAX = {"publish": {"gates": {"clap": 0.0, "fad": 99.0, "size": 99.0, "degenerate": 99, "quiet": 1.0}}}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A publisher who has an honest bundle in the store; afterwards, nothing was signed and nothing can be pulled."""
    monkeypatch.setenv("TMCTL_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("TMCTL_STORE", str(tmp_path / "store"))
    world = World(tmp_path)
    yield world
    assert world.registry.aliases() == []
    for alias in ("candidate", "stable"):
        with pytest.raises(StoreError):
            world.client(f"band@{alias}").pull()


class TestRemovedReleases:
    """Whoever removes the newest releases, and the timestamp, has the publisher sign nothing that is older."""

    @pytest.fixture
    def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
        """Two releases of band@stable; the attacker removes the second, and puts the copy of the first back."""
        monkeypatch.setenv("TMCTL_KEYS", str(tmp_path / "keys"))
        world = World(tmp_path)
        old, new = world.made(decoder="old"), world.made(decoder="new")
        world.registry.release(old, "stable", {})
        before = world.store.get("releases/band/stable/latest.json")
        world.registry.release(new, "stable", {})
        world.client().pull()
        for entry in list(world.store.list("releases/band/stable/v00000002-")):
            world.store.delete(entry.key)
        world.store.put("releases/band/stable/latest.json", before)
        return world

    def test_nothing_older_is_signed(self, world: World) -> None:
        after = sorted(entry.key for entry in world.store.list("releases/"))
        for sign in (
            world.registry.renew,
            lambda: world.registry.newest("band", "stable"),
            lambda: world.registry.release(world.made(decoder="third"), "stable", {}),
            lambda: world.registry.rotate("release"),
        ):
            with pytest.raises(UntrustedError, match=r"version 2 was released, and the newest in .* is 1; later"):
                sign()
        assert sorted(entry.key for entry in world.store.list("releases/")) == after
        assert world.playing()["decoder"] == "new"

    def test_an_alias_that_is_gone_is_missed(self, world: World) -> None:
        for entry in list(world.store.list("releases/")):
            world.store.delete(entry.key)
        with pytest.raises(UntrustedError, match=r"newest in .* is none"):
            world.registry.renew()

    def test_the_operator_can_go_on(self, world: World) -> None:
        (world.folder / "keys" / "released" / "band@stable.json").unlink()
        assert [one.version for one in world.registry.renew()] == [2]

    def test_revoked_keys_begin_again(self, world: World) -> None:
        (world.folder / "keys" / "released" / "band@stable.json").unlink()
        world.registry.rotate("release", revoke=True)
        assert world.registry.release(world.made(decoder="fourth"), "stable", {}).version == 1
        world.registry.rotate("release", revoke=True)
        assert world.registry.release(world.made(decoder="fifth"), "stable", {}).version == 1

    def test_root_documents_that_are_gone_are_not_made_again(self, world: World) -> None:
        world.store.delete("keys/root-000001.json")
        with pytest.raises(KeyFileError, match=r"has the keys of root document 1, .* Put them back"):
            world.registry.create()
        assert not list(world.store.list("keys/"))


def test_another_form_of_a_root_document_stops_nobody(world: World) -> None:
    """Blanks in the envelope change no signature."""
    key = "keys/root-000001.json"
    world.store.put(key, json.dumps(json.loads(world.store.get(key)), indent=4).encode())
    assert [one.version for one in world.registry.roots()] == [1]


def planted(world: World, name: str = "band", **changes: Any) -> Manifest:
    """An artifact that the attacker writes; it has a digest of its own, and no driver attests it."""
    folder = world.folder / "planted"
    folder.mkdir(exist_ok=True)
    (folder / "decoder").write_text("malware")
    facts = {"recipe": LAX, "lineage": {"run": "e"}, "metrics": GOOD, "licence": "Apache-2.0", **changes}
    return manifests.publish(world.store, folder, name=name, kind="bundle", **facts)


def forged(kind: str, document: Any, key: Ed25519PrivateKey | None = None) -> bytes:
    """A document signed with a key of the attacker's."""
    payload = document.model_dump_json().encode()
    return seal_bytes(f"application/vnd.tinymusician.{kind}+json", payload, [key or Ed25519PrivateKey.generate()])


def attestation(artifact: Manifest, **more: Any) -> ArtifactAttestation:
    return ArtifactAttestation(artifact=artifact.reference, created=datetime(2099, 1, 1, tzinfo=UTC), **more)


def figures(artifact: Manifest, run: str = "e") -> EvaluationFigures:
    return EvaluationFigures(run=run, models={artifact.reference: GOOD, "teacher": BASELINE}, publish={})


def published(world: World, artifact: Manifest) -> None:
    """What `tmctl artifacts publish REFERENCE --evaluation e` does."""
    config = publish_config(world.store, artifact.reference)
    publish(world.registry, artifact, release_metrics(world.store, "e", artifact.reference, "teacher"), config)


class TestArtifacts:
    def test_no_driver_attests_it(self, world: World) -> None:
        with pytest.raises(UntrustedError, match="no job has attested that it made it"):
            published(world, planted(world))

    def test_attested_by_a_key_of_the_attackers(self, world: World) -> None:
        bad = planted(world)
        world.store.put(attestation_key(bad.reference), forged("attestation", attestation(bad)))
        write_figures(world.store, figures(bad))
        with pytest.raises(UntrustedError, match=r"signed by .*, and trusted are .*trust-job PUBLIC_KEY"):
            published(world, bad)

    def test_attestation_of_another_artifact(self, world: World) -> None:
        good, bad = world.made(decoder="good"), planted(world)
        world.store.put(attestation_key(bad.reference), world.store.get(attestation_key(good.reference)))
        with pytest.raises(UntrustedError, match=f"{attestation_key(bad.reference)} is about {good.reference}"):
            published(world, bad)

    def test_signed_document_of_another_kind(self, world: World) -> None:
        good, bad = world.made(decoder="good"), planted(world)
        write_figures(world.store, figures(good))
        world.store.put(attestation_key(bad.reference), world.store.get(figures_key("e")))
        with pytest.raises(UntrustedError, match=r"is a .*figures.*; a .*attestation.* is needed"):
            published(world, bad)

    def test_date_of_2099_makes_no_newest(self, world: World) -> None:
        good = world.made(decoder="good")
        bad = planted(world).model_copy(update={"created": datetime(2099, 1, 1, tzinfo=UTC)})
        world.store.put(bad.key, bad.canonical())
        world.store.put(attestation_key(bad.reference), forged("attestation", attestation(bad)))
        assert find(world.store, "band") == good

    def test_the_only_one_of_a_name(self, world: World) -> None:
        planted(world, name="band-new")
        with pytest.raises(UntrustedError, match="which is the newest is not certain"):
            find(world.store, "band-new")

    def test_other_files_under_a_digest(self, world: World) -> None:
        good, bad = world.made(decoder="good"), planted(world)
        world.store.put(good.key, bad.canonical())
        with pytest.raises(StoreError, match="does not hold the manifest"):
            find(world.store, good.reference)

    def test_another_artifact_under_a_digest_that_is_gone(self, world: World) -> None:
        """It lists the honest manifest's bytes as its bundle's manifest, whose digest names it, too."""
        good = world.made(decoder="good")
        folder = world.folder / "forged"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(good.canonical())
        (folder / "decoder").write_text("malware")
        facts: dict[str, Any] = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "Apache-2.0"}
        bad = manifests.publish(world.store, folder, name="band", kind="bundle", **facts)
        world.store.delete(good.key)
        assert bad.bundle_digest == good.digest
        with pytest.raises(UntrustedError, match="no job has attested"):
            find(world.store, good.reference)


class TestFigures:
    def test_report_and_status_of_a_run(self, world: World) -> None:
        good, run = world.made(decoder="good"), RunStore(world.store, "e")
        run.write_record(record("e", kind="evaluate"))
        run.write_result(RunResult(evaluated={good.reference: GOOD, "teacher": BASELINE}))
        for name in ("status.json", "report.json"):
            world.store.put(run.key(name), b'{"state": "SUCCEEDED"}')
        with pytest.raises(NotFoundError, match="run 'e': has no evaluation"):
            published(world, good)

    def test_signed_by_a_key_of_the_attackers(self, world: World) -> None:
        good = world.made(decoder="good")
        world.store.put(figures_key("e"), forged("figures", figures(good)))
        with pytest.raises(UntrustedError, match="signed by"):
            published(world, good)

    def test_of_another_run(self, world: World) -> None:
        good = world.made(decoder="good")
        write_figures(world.store, figures(good, run="other"))
        world.store.put(figures_key("e"), world.store.get(figures_key("other")))
        with pytest.raises(UntrustedError, match=r"has the figures of run 'other'"):
            published(world, good)

    def test_changed_after_signing(self, world: World) -> None:
        good = world.made(decoder="good")
        write_figures(world.store, figures(good))
        envelope = json.loads(world.store.get(figures_key("e")))
        changed = json.loads(forged("figures", figures(good).model_copy(update={"models": {}})))
        envelope["payload"] = changed["payload"]
        world.store.put(figures_key("e"), json.dumps(envelope).encode())
        with pytest.raises(UntrustedError, match="its signature is invalid"):
            published(world, good)


class TestRuns:
    def test_replaced_recipe(self, world: World) -> None:
        """A submission gives the record's digest to the cluster, so the driver does not start with another record."""
        run = RunStore(world.store, "r").write_record(record("r"))
        RunStore(world.store, "r").write_record(record("r", recipe={"publish": LAX["publish"]}))
        with pytest.raises(UntrustedError, match="is not the one that was submitted"):
            sign_result(run, RunResult(artifact=planted(world).reference))

    def test_gates_are_those_of_the_submitted_recipe(self, world: World) -> None:
        recipe = load_recipe("band").model_dump(mode="json")
        run = RunStore(world.store, "r").write_record(record("r", recipe=recipe))
        made = planted(world)  # an honest driver received this from its workers, with a recipe of its own choice
        sign_result(run, RunResult(artifact=made.reference))
        assert publish_config(world.store, made.reference) == load_recipe("band").publish
        assert publish_config(world.store, made.reference).gates != PublishConfig.model_validate(LAX["publish"]).gates


def test_result_of_a_precompute_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers write it to the store, so it names nothing that is signed."""
    recipe, bad = load_recipe("band").model_dump(mode="json"), planted(world)
    run = RunStore(world.store, "pre").write_record(record("pre", kind="precompute", recipe=recipe))
    run.write_result(RunResult(artifact=bad.reference, others=(bad.reference,), evaluated={bad.reference: GOOD}))
    monkeypatch.setattr("jobs.distill.precompute.compute", lambda run: None)
    sign_result(run, precompute.run(run))
    with pytest.raises(UntrustedError):
        attestation_of(world.store, bad.reference)
    assert not world.store.exists(figures_key("pre"))


def test_result_of_a_reproduction(world: World) -> None:
    """`make paper` reuses a run that the store says has succeeded."""
    run, good = RunStore(world.store, "paper-student-1"), world.made(decoder="good")
    for artifact, reason in ((planted(world), "no job has attested"), (good, "its driver does not attest")):
        run.write_result(RunResult(artifact=artifact.reference))
        with pytest.raises(UntrustedError, match=reason):
            made_by(run)


class TestPipelines:
    """The attacker writes the results of steps, for a pipeline that has not run; every step must run."""

    @pytest.fixture
    def pipeline(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
        recipe = load_recipe("band", ("pipeline.last=quantize",)).model_dump(mode="json")
        run = RunStore(world.store, "p").write_record(record("p", kind="pipeline", recipe=recipe))
        pipeline = Pipeline(run)
        self.ran: list[str] = []
        honest = world.made(decoder="good").reference

        def run_job(kind: JobKind, run: RunStore) -> RunResult:
            self.ran.append(kind)
            return RunResult(artifact=None if kind == "precompute" else honest)

        monkeypatch.setattr("jobs.pipeline.run_job", run_job)
        return pipeline

    @pytest.mark.parametrize("how", ["unsigned", "by another key", "of other inputs", "of another pipeline's step"])
    def test_step_results(self, world: World, pipeline: Pipeline, how: str) -> None:
        pipeline.run()
        assert self.ran == ["precompute", "distill", "quantize"]
        keys = [entry.key for entry in world.store.list("pipeline/")]
        assert len(keys) == 3
        bad = planted(world)
        RunStore(world.store, "bad").write_record(record("bad"))
        first = world.store.get(keys[0])
        for key in keys:
            step = json.dumps({"run": "bad", "artifact": bad.reference, "inputs": Path(key).stem}).encode()
            kind = "application/vnd.tinymusician.pipeline-step+json"
            forgeries = {
                "unsigned": step,
                "by another key": seal_bytes(kind, step, [Ed25519PrivateKey.generate()]),
                "of other inputs": world.store.get(keys[(keys.index(key) + 1) % 3]) if key != keys[2] else first,
                "of another pipeline's step": forged("attestation", attestation(bad)),
            }
            world.store.put(key, forgeries[how])
        self.ran.clear()
        result = pipeline.run()
        assert self.ran == ["precompute", "distill", "quantize"]
        assert bad.reference not in (result.artifact, json.dumps(result.metrics))

    def test_honest_results_count(self, pipeline: Pipeline) -> None:
        first = pipeline.run()
        self.ran.clear()
        assert pipeline.run() == first
        assert self.ran == []


def test_promotion_needs_an_attestation(tmp_path: Path) -> None:
    """Also of an artifact that was released: a release key may be where no job key is."""
    world = World(tmp_path)
    good = world.made(decoder="good")
    metrics = {"run": "e", "own": GOOD, "baseline": {"model": "teacher", **BASELINE}}
    source = publish(world.registry, good, metrics, PublishConfig())
    assert released_config(source) == PublishConfig()
    world.store.delete(attestation_key(good.reference))
    with pytest.raises(UntrustedError, match="no job has attested"):
        promote(world.registry, source, "stable", released_config(source), None)

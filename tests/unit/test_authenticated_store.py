"""An attacker with write access to the store changes what jobs have put aside for themselves: it is not used."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization

from jobs.launch.run_origin import begin
from jobs.worker.context import WorkerContext
from tests.unit.test_runs import record
from tinymusician.artifacts.authenticated_store import AuthenticatedStore, WorkingKeys, run_facts
from tinymusician.artifacts.job_keys import derived_working_key, job_keys_folder
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.store import LocalStore
from tinymusician.config_model import Document
from tinymusician.data.shards import Arrays, ShardCache, read_arrays
from tinymusician.errors import DigestMismatchError, RunError, UntrustedError
from tinymusician.recipe import load_recipe
from tinymusician.training.checkpoint import CheckpointManager

KEY, OTHER = WorkingKeys(b"k" * 32, b"r" * 32), WorkingKeys(b"o" * 32, b"p" * 32)
NOTES = (
    "shards/codes/ab/shard-00000.json",
    "runs/r/checkpoints/distill/step-00000010.json",
    "runs/r/checkpoints/distill/step-00000010/ab-0-of-1.json",
    "runs/r/measurements/cost-12.json",
    "runs/r/skipped-steps-distill.json",
)


@pytest.fixture
def plain(tmp_path: Path) -> LocalStore:
    """The store as the attacker sees it."""
    return LocalStore(tmp_path / "store")


@pytest.fixture
def store(plain: LocalStore) -> AuthenticatedStore:
    """The same store, as a job with the key sees it."""
    return AuthenticatedStore(plain, KEY)


@pytest.mark.parametrize("key", NOTES)
class TestNotes:
    def test_the_code_is_an_hmac_of_place_and_content(
        self, plain: LocalStore, store: AuthenticatedStore, key: str
    ) -> None:
        store.put(key, b'{"b": 1.5, "a": [1]}')
        secret = KEY.run if key.startswith("runs/") else KEY.shared
        expected = hmac.new(secret, f'{key}\n{{"a":[1],"b":1.5}}'.encode(), hashlib.sha256).hexdigest()
        assert json.loads(plain.get(key)) == {"a": [1], "b": 1.5, "mac": expected}
        assert json.loads(store.get(key)) == {"a": [1], "b": 1.5}

    def test_what_an_attacker_writes_is_refused(self, plain: LocalStore, store: AuthenticatedStore, key: str) -> None:
        AuthenticatedStore(plain, OTHER).put(key, b'{"step": 1}')
        by_another = plain.get(key)
        elsewhere = f"{key.removesuffix('.json')}1.json"
        store.put(elsewhere, b'{"step": 1}')
        store.put(key, b'{"step": 1}')
        changed = {**json.loads(plain.get(key)), "step": 2}
        texts = [b'{"step": 1}', by_another, plain.get(elsewhere), json.dumps(changed).encode()]
        damaged = (b"", b"[]", b"null", b'{"mac": null}', b'{"mac": ["\xc3\xa4"]}', b"[" * 100_000)
        for text in (*texts, *damaged):
            plain.put(key, text)
            with pytest.raises(DigestMismatchError, match=f"{key} in .* was not written by a job with this job key"):
                store.get(key)


def test_other_documents_are_as_in_any_store(plain: LocalStore, store: AuthenticatedStore) -> None:
    for key in ("runs/r/record.json", "runs/r/metrics/distill/000000", "artifacts/a/b.json", "shards/x.txt"):
        store.put(key, b"content")
        assert plain.get(key) == store.get(key) == b"content"


def test_the_key_follows_from_the_job_key() -> None:
    """By HKDF (RFC 5869), written out: extract with a salt of zeros, and expand to one block."""
    key = derived_working_key()
    (pem,) = job_keys_folder().glob("job-*.pem")
    private = serialization.load_pem_private_key(pem.read_bytes(), None)
    raw = private.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    extracted = hmac.new(bytes(32), raw, hashlib.sha256).digest()
    assert key == hmac.new(extracted, b"tinymusician working files\x01", hashlib.sha256).digest()


def test_workers_get_the_key_and_do_not_show_it(plain: LocalStore) -> None:
    context = WorkerContext.of_run(RunStore(plain, "r").authenticated(KEY), 0, 1, "cpu")
    context.run.store.put(NOTES[0], b'{"a": 1}')
    assert json.loads(AuthenticatedStore(plain, KEY).get(NOTES[0])) == {"a": 1}
    assert "kkk" not in repr(context)
    assert "rrr" not in repr(context)


class TestShards:
    def test_a_false_shard_is_computed_again(
        self, plain: LocalStore, store: AuthenticatedStore, tmp_path: Path
    ) -> None:
        def make(index: int) -> Arrays:
            return {"codes": np.arange(4)}

        shards = ShardCache(store, "codes", {"seed": 0}, 1)
        shards.write(0, make(0))
        (note,) = [entry.key for entry in plain.list("shards/")]
        attackers = ShardCache(plain, "codes", {"seed": 1}, 1)
        attackers.write(0, {"codes": np.zeros(4)})
        (false,) = [entry.key for entry in plain.list("shards/") if entry.key != note]
        plain.put(note, plain.get(false))
        assert not shards.contains(0)
        assert read_arrays(shards.fetch_or_make(0, tmp_path / "cache", make))["codes"].tolist() == [0, 1, 2, 3]
        assert shards.contains(0)

    def test_without_a_way_to_compute_it_the_job_ends(
        self, plain: LocalStore, store: AuthenticatedStore, tmp_path: Path
    ) -> None:
        shards = ShardCache(store, "codes", {"seed": 0}, 1)
        shards.write(0, {"codes": np.arange(4)})
        (note,) = [entry.key for entry in plain.list("shards/")]
        plain.put(note, json.dumps({**json.loads(plain.get(note)), "sha256": "0" * 64}).encode())
        with pytest.raises(DigestMismatchError, match="was dropped: run the job again"):
            shards.fetch(0, tmp_path / "cache")
        assert shards.missing() == [0]

    def test_jobs_of_two_keys_do_not_disturb_each_other(self, plain: LocalStore) -> None:
        one, two = (ShardCache(AuthenticatedStore(plain, key), "codes", {"seed": 0}, 1) for key in (KEY, OTHER))
        one.write(0, {"codes": np.arange(4)})
        assert (one.missing(), two.missing()) == ([], [0])

    def test_the_first_of_joined_shards_is_computed_again_too(
        self, plain: LocalStore, store: AuthenticatedStore, tmp_path: Path
    ) -> None:
        shards = ShardCache(store, "codes", {"seed": 0}, 2)
        for index in range(2):
            shards.write(index, {"codes": np.full(2, index)})
        for entry in list(plain.list("shards/")):
            plain.put(entry.key, b'{"sha256": "", "size": 1}')
        joined = shards.join(["codes"], tmp_path / "cache", lambda index: {"codes": np.full(2, index)})
        assert joined["codes"].tolist() == [0, 0, 1, 1]

    def test_false_details_are_dropped(self, plain: LocalStore, store: AuthenticatedStore) -> None:
        shards = ShardCache(store, "trials", {"seed": 0}, 1)
        shards.write(0, {"codes": np.arange(4)}, {"kl": 1.0})
        (note,) = [entry.key for entry in plain.list("shards/")]
        plain.put(note, plain.get(note).replace(b"1.0", b"0.5"))
        with pytest.raises(DigestMismatchError, match="run the job again"):
            shards.details(0)
        assert shards.missing() == [0]


class TestRuns:
    """What a run began with, and runs of the same name."""

    @pytest.fixture
    def run(self, plain: LocalStore) -> RunStore:
        recipe = load_recipe("band").model_dump(mode="json")
        return RunStore(plain, "r").write_record(record("r", recipe=recipe))

    def test_a_run_continues_with_the_recipe_that_it_began_with(self, plain: LocalStore, run: RunStore) -> None:
        begin(run, KEY.shared, is_resumed=False).write_measurement("cost", "band", _Cost(seconds=1.0))
        more_restarts = load_recipe("band", ("training.max_restarts=9",)).model_dump(mode="json")
        resumed = begin(run.write_record(record("r", recipe=more_restarts)), KEY.shared, is_resumed=True)
        assert resumed.measurement("cost", "band", _Cost) == _Cost(seconds=1.0)
        lax = load_recipe("band", ("publish.gates.clap=0.0",)).model_dump(mode="json")
        with pytest.raises(UntrustedError, match="began with another recipe than its record in"):
            begin(run.write_record(record("r", recipe=lax)), KEY.shared, is_resumed=True)
        origin = json.loads(plain.get(run.key("origin.json")))
        plain.put(run.key("origin.json"), json.dumps({**origin, "recipe": lax}).encode())
        with pytest.raises(DigestMismatchError, match="was not written by a job with this job key"):
            begin(run.write_record(record("r", recipe=lax)), KEY.shared, is_resumed=True)
        plain.delete(run.key("origin.json"))
        with pytest.raises(RunError, match="has not begun, so there is nothing to resume"):
            begin(RunStore(plain, "r"), KEY.shared, is_resumed=True)

    def test_notes_of_an_earlier_run_of_the_name_are_refused(self, plain: LocalStore, run: RunStore) -> None:
        begin(run, KEY.shared, is_resumed=False).write_measurement("cost", "band", _Cost(seconds=1.0))
        again = begin(run, KEY.shared, is_resumed=False)
        with pytest.raises(DigestMismatchError):
            again.measurement("cost", "band", _Cost)
        earlier = run_facts(begin(run, KEY.shared, is_resumed=True).store, "r")
        assert earlier == run_facts(again.store, "r") != run_facts(begin(run, KEY.shared, is_resumed=False).store, "r")


class _Cost(Document):
    seconds: float


def test_false_measurements_and_checkpoints_end_the_job(plain: LocalStore, store: AuthenticatedStore) -> None:
    run, attackers = RunStore(store, "r"), RunStore(plain, "r")
    run.write_measurement("cost", "band", _Cost(seconds=2.0))
    assert run.measurement("cost", "band", _Cost) == _Cost(seconds=2.0)
    attackers.write_measurement("cost", "band", _Cost(seconds=0.1))
    with pytest.raises(DigestMismatchError):
        run.measurement("cost", "band", _Cost)
    run.write_skipped_steps("distill", {3, 1})
    assert run.skipped_steps("distill") == {1, 3}
    attackers.write_skipped_steps("distill", range(100))
    with pytest.raises(DigestMismatchError):
        run.skipped_steps("distill")
    shard = {"key": "x", "size": 1, "sha256": "0" * 64}
    entry = {"step": 9, "updates": 9, "metrics": {}, "history": {}, "shards": [shard]}
    plain.put(f"{run.checkpoints_key('distill')}/step-00000009.json", json.dumps(entry).encode())
    with pytest.raises(DigestMismatchError, match="was not written by a job with this job key"):
        CheckpointManager(store, run.checkpoints_key("distill"), "kl").latest()

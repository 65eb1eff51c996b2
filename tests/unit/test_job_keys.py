"""Job keys: how they are created, and which drivers are trusted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymusician.artifacts.attestations import ArtifactAttestation, attest, attestation_of
from tinymusician.artifacts.job_keys import local_job_key, trust_job_key, trusted_job_keys
from tinymusician.artifacts.keys import key_id, public_hex
from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import KeyFileError, UntrustedError

REFERENCE = "band@sha256:" + "0" * 64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMCTL_JOB_KEYS", str(tmp_path / "job-keys"))
    return tmp_path / "job-keys"


def test_one_key_is_created_when_it_is_needed(folder: Path) -> None:
    assert trusted_job_keys() == {}
    with ThreadPoolExecutor(8) as pool:
        keys = {public_hex(key) for key in pool.map(lambda _: local_job_key(), range(8))}
    (public,) = keys
    assert trusted_job_keys() == {key_id(public): public}
    (private,) = folder.glob("*.pem")
    assert private.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_cluster_is_trusted_by_its_public_key(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher signs with keys of its own; the driver's private key stays where it is."""
    store = LocalStore(tmp_path / "store")
    attest(store, ArtifactAttestation(artifact=REFERENCE, created=now()))
    public = public_hex(local_job_key())
    monkeypatch.setenv("TMCTL_JOB_KEYS", str(tmp_path / "publisher"))
    with pytest.raises(UntrustedError, match=r"and trusted are none; `tmctl signing-keys trust-job PUBLIC_KEY`"):
        attestation_of(store, REFERENCE)
    path = trust_job_key(public)
    assert attestation_of(store, REFERENCE).artifact == REFERENCE
    assert path.read_text() == f"{public}\n"
    assert not list(path.parent.glob("*.pem"))
    path.unlink()
    with pytest.raises(UntrustedError):
        attestation_of(store, REFERENCE)


@pytest.mark.parametrize("public", ["", "ab", "X" * 64, "A" * 64, "../" + "a" * 61])
def test_what_is_no_public_key(folder: Path, public: str) -> None:
    with pytest.raises(KeyFileError, match="64 hexadecimal digits are needed"):
        trust_job_key(public)
    assert not folder.exists()


def test_damaged_or_renamed_files(folder: Path) -> None:
    path = trust_job_key(public_hex(Ed25519PrivateKey.generate()))
    path.write_text("nothing")
    with pytest.raises(KeyFileError, match="cannot be read as a public key"):
        trusted_job_keys()
    path.write_text(public_hex(Ed25519PrivateKey.generate()))
    with pytest.raises(KeyFileError, match="contains another key than its name says"):
        trusted_job_keys()


def test_a_file_in_the_folders_place(folder: Path) -> None:
    folder.write_text("no folder")
    with pytest.raises(KeyFileError, match=r"a job key cannot be created \(.*\); TMCTL_JOB_KEYS names a folder"):
        local_job_key()

"""OpenSSF model signatures, verified by model-signing's own command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tinymusician.artifacts.manifest import Manifest, fetch, publish
from tinymusician.artifacts.model_signature import write_model_signature
from tinymusician.artifacts.secret_input import PASSPHRASE_VARIABLE
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import KeyFileError, NotFoundError

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def write_keys(folder: Path, encryption: serialization.KeySerializationEncryption) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "ec.pem", folder / "ec.pub"
    private.write_bytes(key.private_bytes(PEM, PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def made(tmp_path: Path) -> tuple[LocalStore, Manifest]:
    store, folder = LocalStore(tmp_path / "store"), tmp_path / "artifact"
    (folder / "part").mkdir(parents=True)
    (folder / "decoder.onnx").write_bytes(b"weights")
    (folder / "part" / "tokenizer.json").write_text("{}")
    return store, publish(store, folder, name="band", kind="bundle", recipe={}, lineage={}, metrics={}, licence="MIT")


def verify(folder: Path, signature: Path, public: Path) -> bool:
    words = ["verify", "key", str(folder), "--signature", str(signature), "--public_key", str(public)]
    command = [str(Path(sys.executable).parent / "model_signing"), *words]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_other_tools_verify_what_is_pulled(
    tmp_path: Path, made: tuple[LocalStore, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passphrase").write_text("words\n")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(tmp_path / "passphrase"))
    private, public = write_keys(tmp_path, serialization.BestAvailableEncryption(b"words"))
    store, manifest = made
    write_model_signature(store, manifest, private, tmp_path / "model.sig")
    fetch(store, manifest, tmp_path / "pulled")
    assert verify(tmp_path / "pulled", tmp_path / "model.sig", public)
    (tmp_path / "pulled" / "decoder.onnx").write_bytes(b"Weights")
    assert not verify(tmp_path / "pulled", tmp_path / "model.sig", public)


def test_nothing_is_written_without_a_key_or_all_files(tmp_path: Path, made: tuple[LocalStore, Manifest]) -> None:
    store, manifest = made
    private, _ = write_keys(tmp_path, serialization.NoEncryption())
    other = tmp_path / "other.pem"
    key = ed25519.Ed25519PrivateKey.generate()
    other.write_bytes(key.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    (tmp_path / "text.pem").write_text("no key")
    for path, message in (
        (other, "is no EC key"),
        (tmp_path / "text.pem", "is no EC key"),
        (tmp_path / "no", "cannot"),
    ):
        with pytest.raises(KeyFileError, match=message) as caught:
            write_model_signature(store, manifest, path, tmp_path / "out" / "model.sig")
        assert "\n" not in str(caught.value)
    for blob in (tmp_path / "store" / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    with pytest.raises(NotFoundError):
        write_model_signature(store, manifest, private, tmp_path / "out" / "model.sig")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

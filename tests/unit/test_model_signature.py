"""OpenSSF model signatures, verified by model-signing's own command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tinymusician.artifacts.manifest import Manifest, fetch, publish
from tinymusician.artifacts.model_signature import MODEL_KEY_VARIABLE, model_signature
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import KeyFileError, NotFoundError

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def write_keys(folder: Path, encryption: serialization.KeySerializationEncryption) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "ec.pem", folder / "ec.pub"
    private.touch(0o600)
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
    monkeypatch.setenv(MODEL_KEY_VARIABLE, str(tmp_path / "passphrase"))
    private, public = write_keys(tmp_path, serialization.BestAvailableEncryption(b"words"))
    store, manifest = made
    (tmp_path / "model.sig").write_bytes(model_signature(store, manifest, private))
    fetch(store, manifest, tmp_path / "pulled")
    assert verify(tmp_path / "pulled", tmp_path / "model.sig", public)
    (tmp_path / "pulled" / "decoder.onnx").write_bytes(b"Weights")
    assert not verify(tmp_path / "pulled", tmp_path / "model.sig", public)


def test_nothing_is_signed_without_a_key_or_all_files(tmp_path: Path, made: tuple[LocalStore, Manifest]) -> None:
    store, manifest = made
    private, _ = write_keys(tmp_path, serialization.NoEncryption())
    other = tmp_path / "other.pem"
    for path in (other, tmp_path / "text.pem"):
        path.touch(0o600)
    key = ed25519.Ed25519PrivateKey.generate()
    other.write_bytes(key.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    (tmp_path / "text.pem").write_text("no key")
    for path, message in (
        (other, "cannot be read as an EC private key"),
        (tmp_path / "text.pem", "cannot be read as an EC private key"),
        (tmp_path / "no", "cannot"),
    ):
        with pytest.raises(KeyFileError, match=message) as caught:
            model_signature(store, manifest, path)
        assert "\n" not in str(caught.value)
    private.chmod(0o644)
    with pytest.raises(KeyFileError, match="others can read it"):
        model_signature(store, manifest, private)
    private.chmod(0o600)
    for blob in (tmp_path / "store" / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    with pytest.raises(NotFoundError):
        model_signature(store, manifest, private)

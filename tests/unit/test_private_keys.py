"""Private keys that a passphrase encrypts, and keys in a PKCS#11 token (SoftHSM), against `cryptography`."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tinymusician.artifacts import secret_input
from tinymusician.artifacts.key_plan import KeyPlan
from tinymusician.artifacts.keys import add_token_key, is_signature, load_key, new_key, public_hex, sign, write_key
from tinymusician.artifacts.keys import key_id as id_of
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.secret_input import PASSPHRASE_VARIABLE, PIN_VARIABLE
from tinymusician.artifacts.store import LocalStore
from tinymusician.artifacts.token_keys import TokenKey, open_token_key
from tinymusician.errors import KeyFileError

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")


def passphrase(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "a long line of words") -> bytes:
    file = folder / "passphrase"
    file.write_text(f"{text}\n")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(file))
    return text.encode()


def test_encrypted_keys_are_read_with_the_passphrase_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, keys = passphrase(tmp_path, monkeypatch), tmp_path / "keys"
    registry = ReleaseRegistry(LocalStore(tmp_path / "store"), keys)
    registry.create(KeyPlan(is_encrypted=True))
    paths = sorted(keys.glob("*.pem"))
    assert [path.name.split("-")[0] for path in paths] == ["release", "root"]
    for path in paths:
        with pytest.raises(TypeError, match="encrypted"):
            serialization.load_pem_private_key(path.read_bytes(), None)
        serialization.load_pem_private_key(path.read_bytes(), words)
    assert registry.extend().version == 2
    assert registry.rotate("root").version == 3
    assert all(b"ENCRYPTED" in path.read_bytes() for path in keys.glob("*.pem")), "new keys are as the old ones"
    passphrase(tmp_path, monkeypatch, "another")
    with pytest.raises(KeyFileError, match=r"root-.*\.pem: cannot be read as a private key"):
        registry.extend()
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    with pytest.raises(KeyFileError, match=f"passphrase of the private keys: is needed; {PASSPHRASE_VARIABLE} names"):
        registry.extend()
    assert registry.roots()[-1].version == 3


def test_passphrase_is_typed_once_a_command_and_twice_for_new_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed, prompts = ["words", "words", "words", "wrods", "words"], list[str]()
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(secret_input.getpass, "getpass", lambda prompt: prompts.append(prompt) or typed.pop(0))
    secret_input._typed.cache_clear()
    try:
        registry = ReleaseRegistry(LocalStore(tmp_path / "store"), tmp_path / "keys")
        registry.create(KeyPlan(is_encrypted=True))
        registry.extend()
        assert prompts == ["passphrase of the private keys: ", "the same passphrase again: "]
        secret_input._typed.cache_clear()
        with pytest.raises(KeyFileError, match="typed differently"):
            ReleaseRegistry(LocalStore(tmp_path / "other"), tmp_path / "others").create(KeyPlan(is_encrypted=True))
        assert not (tmp_path / "others").exists()
    finally:
        secret_input._typed.cache_clear()


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The beginning of the URIs of a token's keys; a process opens SoftHSM once, so all tests share it."""
    if shutil.which("softhsm2-util") is None or not MODULE.exists():
        pytest.skip("no SoftHSM here: `make tools`")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm.conf").write_text(f"directories.tokendir = {folder}/tokens\n")
    (folder / "pin").write_text("4711\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm.conf"))
        patch.setenv(PIN_VARIABLE, str(folder / "pin"))
        words = ["--init-token", "--free", "--label", "band", "--pin", "4711", "--so-pin", "0815"]
        subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)
        yield "pkcs11:token=band;object="


def import_key(label: str, number: str, folder: Path, curve: ec.EllipticCurve | None = None) -> str:
    """Put a new key into the token; returns its public half."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    words = ["--import", str(folder / "key.pem"), "--token", "band", "--label", label, "--id", number, "--pin", "4711"]
    subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)
    (folder / "key.pem").unlink()
    point = serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(serialization.Encoding.X962, point).hex()


def test_token_signs_and_no_private_key_is_in_a_file(token: str, tmp_path: Path) -> None:
    public = import_key("root key", "01ff", tmp_path)
    uri = f"{token}root%20key?module-path={MODULE}"
    key = add_token_key("root", tmp_path / "keys", uri)
    assert (key.public, public_hex(key)) == (public, public)
    signature = sign(key, b"a message")
    numbers = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(public))
    numbers.verify(signature, b"a message", ec.ECDSA(hashes.SHA256()))
    assert not is_signature(public, signature, b"another message")
    (file,) = (tmp_path / "keys").iterdir()
    assert file.read_text() == f"{uri}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_key("root", tmp_path / "keys", [id_of(public)]) == key
    (tmp_path / "pin").write_text("4711")
    by_number = open_token_key(f"pkcs11:id=%01%ff;token=band?module-path={MODULE}&pin-source=file:{tmp_path}/pin")
    assert by_number.public == public


def test_releases_are_signed_by_tokens_and_keys_are_replaced_by_others(token: str, tmp_path: Path) -> None:
    publics = {label: import_key(label, number, tmp_path) for label, number in (("a", "0a"), ("b", "0b"), ("c", "0c"))}
    uris = {label: f"{token}{label}?module-path={MODULE}" for label in publics}
    registry = ReleaseRegistry(LocalStore(tmp_path / "store"), tmp_path / "keys")
    registry.create(KeyPlan(root=2, root_threshold=2, tokens={"root": (uris["a"], uris["b"])}))
    assert set(registry.roots()[-1].public_keys("root")) == {publics["a"], publics["b"]}
    with pytest.raises(KeyFileError, match="--token: 1 keys; the role root has 2"):
        registry.rotate("root", tokens=(uris["c"],))
    after = registry.rotate("release", tokens=(uris["c"],))
    assert after.public_keys("release") == (publics["c"],)
    assert registry.rotate("release").version == 3
    assert len(registry.roots()) == 3, "each is verified against the one before"
    assert not list((tmp_path / "keys").glob("root-*.pem"))


def test_as_many_tokens_as_must_sign_are_enough(token: str, tmp_path: Path) -> None:
    """The first of three keys is in a token that is elsewhere; two must sign."""
    publics = {label: import_key(label, number, tmp_path) for label, number in (("d", "2a"), ("e", "2b"), ("f", "2c"))}
    uris = {label: f"{token}{label}?module-path={MODULE}" for label in publics}
    keys = tmp_path / "keys"
    registry = ReleaseRegistry(LocalStore(tmp_path / "store"), keys)
    plan = KeyPlan(root_threshold=2, root=3, tokens={"root": tuple(uris.values())})
    registry.create(plan)
    ids = [id_of(public) for public in registry.roots()[0].public_keys("root")]
    first, second = (keys / f"root-{one[:12]}.pkcs11" for one in ids[:2])
    first.write_text(first.read_text().replace("token=band", "token=elsewhere"))
    assert registry.extend().version == 2
    second.write_text(second.read_text().replace("token=band", "token=elsewhere"))
    with pytest.raises(KeyFileError, match=r"token=elsewhere.*cannot be used"):
        registry.extend()


def test_a_key_of_two_roles_is_refused(token: str, tmp_path: Path) -> None:
    import_key("both", "3a", tmp_path)
    uri = f"{token}both?module-path={MODULE}"
    registry = ReleaseRegistry(LocalStore(tmp_path / "store"), tmp_path / "keys")
    with pytest.raises(KeyFileError, match="is named twice; each role needs keys of its own"):
        registry.create(KeyPlan(tokens={"root": (uri,), "release": (uri,)}))
    registry.create(KeyPlan(tokens={"root": (uri,)}))
    with pytest.raises(KeyFileError, match="is named twice"):
        registry.rotate("release", tokens=(uri,))
    assert registry.roots()[-1].version == 1


def test_what_a_token_cannot_do_is_one_line(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_key("root", "0d", tmp_path)
    import_key("wide", "0e", tmp_path, ec.SECP384R1())
    good = f"{token}root?module-path={MODULE}"
    for uri, message in (
        (f"{token}nothing?module-path={MODULE}", "cannot be used"),
        (f"pkcs11:token=none;object=root?module-path={MODULE}", "cannot be used"),
        (f"{token}root?module-path=/nowhere.so", "cannot be used"),
        (f"{token}wide?module-path={MODULE}", "no key of ECDSA on P-256"),
    ):
        with pytest.raises(KeyFileError, match=message) as caught:
            open_token_key(uri)
        assert "\n" not in str(caught.value)
    (tmp_path / "pin").write_text("0000\n")
    monkeypatch.setenv(PIN_VARIABLE, str(tmp_path / "pin"))
    with pytest.raises(KeyFileError, match="the PIN is wrong"):
        open_token_key(good)
    monkeypatch.delenv(PIN_VARIABLE)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(KeyFileError, match=f"PIN of the token band: is needed; {PIN_VARIABLE} names a file"):
        open_token_key(good)


@pytest.mark.parametrize(
    "uri",
    [
        "root",
        "pkcs11:object=root?module-path=/m.so",
        "pkcs11:token=band?module-path=/m.so",
        "pkcs11:token=band;object=root",
        "http:token=band;object=root?module-path=/m.so",
        "pkcs11:token=band;slot-id=3;object=root?module-path=/m.so",
        "pkcs11:token=band;object=root?module-path=/m.so&pin-value=1234",
    ],
)
def test_uris_that_name_no_key(uri: str) -> None:
    with pytest.raises(KeyFileError, match=r"the form is pkcs11:|allowed are token, object, id, module-path"):
        open_token_key(uri)


def test_another_key_under_a_files_name_is_refused(token: str, tmp_path: Path) -> None:
    import_key("one", "1a", tmp_path)
    import_key("other", "1b", tmp_path)
    key = add_token_key("release", tmp_path / "keys", f"{token}one?module-path={MODULE}")
    (file,) = (tmp_path / "keys").iterdir()
    file.write_text(f"{token}other?module-path={MODULE}\n")
    with pytest.raises(KeyFileError, match="the token has another key than the file's name says"):
        load_key("release", tmp_path / "keys", [id_of(key.public)])
    assert isinstance(key, TokenKey)
    plain = new_key("release", tmp_path / "others")
    write_key("release", tmp_path / "again", plain)
    assert [path.name for path in (tmp_path / "again").iterdir()] == [f"release-{id_of(public_hex(plain))[:12]}.pem"]

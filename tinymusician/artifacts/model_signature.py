"""An OpenSSF model signature of an artifact, which tools that know no releases can verify.

It covers the files of the artifact as `tmctl pull` writes them: an in-toto statement in a Sigstore bundle, signed by
an EC key of its own (model-signing, the specification's reference implementation; an optional package). It has no
version, no expiry and no alias: devices rely on releases.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tinymusician.artifacts.keys import read_private
from tinymusician.artifacts.manifest import Manifest, fetch
from tinymusician.artifacts.secret_input import read_secret
from tinymusician.artifacts.store import Store
from tinymusician.errors import KeyFileError, first_line

MODEL_KEY_VARIABLE = "TMCTL_MODEL_KEY_PASSPHRASE_FILE"


def model_signature(store: Store, manifest: Manifest, private_key: Path) -> bytes:
    """The signature of an artifact's files by a PEM key on P-256, P-384 or P-521.

    Raises:
        KeyFileError: the package is not installed, or the key cannot be read or is of another kind.
    """
    try:
        from model_signing.signing import Config
    except ImportError as error:
        raise KeyFileError("a model signature needs model-signing: pip install 'tinymusician[openssf]'") from error
    try:
        is_encrypted = b"ENCRYPTED" in read_private(private_key)
    except OSError as error:
        raise KeyFileError(f"{private_key}: cannot be read ({error.strerror})") from None
    password = read_secret(f"passphrase of {private_key.name}", MODEL_KEY_VARIABLE) if is_encrypted else None
    try:
        config = Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=private_key, password=password)  # type: ignore[arg-type]  # it wants bytes
    except (ValueError, TypeError, AttributeError) as error:  # the last for keys of another kind
        raise KeyFileError(f"{private_key}: cannot be read as an EC private key ({first_line(error)})") from None
    with tempfile.TemporaryDirectory() as folder:
        model, signature = Path(folder) / "model", Path(folder) / "signature"
        fetch(store, manifest, model)
        config.sign(model, signature)
        return signature.read_bytes()

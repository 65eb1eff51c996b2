"""A bundle: a folder of ONNX graphs that phones, browsers and servers run, and its manifest.

    manifest.json       architecture, sampling defaults, and size and SHA-256 of every file
    text_encoder.onnx   text to states                      cross.onnx          states to cross-attention
    decoder.onnx        the codes of one step to logits       codec_decoder.onnx  codes to audio
    codec_encoder.onnx  audio to codes, if clips can be continued
    tokenizer.json      text to token ids

There is one file per component, so an update of the decoder does not download the text encoder again. Loading
fails if a file's SHA-256 is not the manifest's, or if a graph reads external data that the manifest does not list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tinymusician.errors import BundleError
from tinymusician.runtime.bundle_manifest import BundleFile, BundleManifest, Role
from tinymusician.runtime.external_data import check_external_data

FORMAT = 1
MANIFEST = "manifest.json"
PACKAGED = Path(__file__).parents[1] / "bundles"
DEFAULT_BUNDLE = "band-small"
"""The packaged bundle: that of the house band's small model, plan `adaptive` (`make default-bundle`)."""
NEEDED: tuple[Role, ...] = ("text_encoder", "cross", "decoder", "codec_decoder", "tokenizer")


def manifest_digest(folder: Path) -> str:
    """The SHA-256 of a bundle's manifest, which contains the SHA-256 of every file: equal on every device."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


class Bundle:
    """A bundle whose files were checked."""

    def __init__(self, folder: Path, manifest: BundleManifest) -> None:
        self.folder, self.manifest = folder, manifest

    def path(self, role: Role) -> Path:
        """The path of the file with this role.

        Raises:
            BundleError: the bundle has no such file.
        """
        for file in self.manifest.files:
            if file.role == role:
                return self.folder / file.path
        raise BundleError(f"bundle {self.folder}: has no {role.replace('_', ' ')}")

    def has(self, role: Role) -> bool:
        """Whether there is a file with this role."""
        return any(file.role == role for file in self.manifest.files)


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and check every file against it.

    Raises:
        BundleError: the manifest is missing, invalid or of another format, or a file is missing or altered.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        check_file(folder, file)
    check_external_data(folder, manifest.files)
    roles = [file.role for file in manifest.files]
    for role in NEEDED:
        if roles.count(role) != 1:
            raise BundleError(f"bundle {folder}: {roles.count(role)} files with role {role!r}; exactly one is needed")
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> BundleManifest:
    """Read the manifest without checking the files."""
    path = folder / MANIFEST
    try:
        manifest = BundleManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(f"bundle {folder}: {MANIFEST} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(key) for key in problem["loc"]) or "content"
        raise BundleError(f"bundle {path}: {where}: {problem['msg'].removeprefix('Value error, ')}") from None
    if manifest.format != FORMAT:
        raise BundleError(f"bundle {path}: format {manifest.format}; this version reads format {FORMAT}")
    return manifest


def check_file(folder: Path, file: BundleFile) -> None:
    """Compare a file's size and SHA-256 with the manifest's."""
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.size:
            raise BundleError(f"bundle {folder}: {file.path} has {size} bytes; the manifest says {file.size}")
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"bundle {folder}: {file.path} cannot be read ({error.strerror})") from error
    if digest != file.sha256:
        raise BundleError(f"bundle {folder}: {file.path} was altered: its SHA-256 is {digest}")


def describe_files(folder: Path, roles: Sequence[tuple[str, Role, str]]) -> tuple[BundleFile, ...]:
    """Manifest entries for the files (path, role, dtype) of a folder."""
    entries = []
    for path, role, dtype in roles:
        with (folder / path).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        size = (folder / path).stat().st_size
        entries.append(BundleFile(path=path, role=role, size=size, sha256=digest, dtype=dtype))
    return tuple(entries)

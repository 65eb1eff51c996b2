"""Resolves the reference of a bundle: a packaged one, a folder, a folder that was pulled to, or an artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinymusician.artifacts.installation import Installation
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.open import open_store
from tinymusician.errors import BundleError
from tinymusician.inputs import fetch_artifact
from tinymusician.runtime.bundle import MANIFEST, PACKAGED


def is_packaged_bundle(name: str) -> bool:
    """Whether a bundle of this name is in the package."""
    return "/" not in name and (PACKAGED / name / MANIFEST).is_file()


def resolve_bundle(model: str, on_download: Callable[[str], None] = lambda path: None) -> Path:
    """The folder of a bundle; `on_download` receives the files that are downloaded.

    Raises:
        NotFoundError: the store has no such artifact.
        BundleError: the artifact is not a bundle, or there is no such folder.
    """
    if is_packaged_bundle(model):
        return PACKAGED / model
    if Path(model).is_dir():
        installed = Installation(Path(model)).usable()
        return installed[1] if installed else Path(model)
    if model.startswith((".", "/", "~")):
        raise BundleError(f"model {model!r}: no such folder")
    store = open_store()
    manifest = find(store, model)
    if not any(file.path == MANIFEST for file in manifest.files):
        advice = "make a bundle of it with `tmctl submit quantize`"
        if manifest.kind == "audio-lm":
            advice = f"its run has made a bundle too, {manifest.name}-bundle"
        raise BundleError(f"model {model!r}: is a {manifest.kind}, which this engine does not play; {advice}")
    return fetch_artifact(store, manifest, on_download)

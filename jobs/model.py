"""What is to be compressed: an artifact, a folder, a hub id or a packaged model, found and brought here."""

from __future__ import annotations

from pathlib import Path

from tinymusician.artifacts.manifest import Manifest, fetch, find
from tinymusician.artifacts.store import Store
from tinymusician.errors import ModelError, NotFound
from tinymusician.models.shape import is_packaged
from tinymusician.recipe import Recipe


def pinned(store: Store, recipe: Recipe, here: bool) -> Recipe:
    """The recipe with its model named for good: an artifact gets its digest, a folder its full path.

    A folder must be there if the job runs `here`, on this machine.

    Raises:
        NotFound, ModelError: there is no such artifact or folder, or it is not a model that can be compressed.
    """
    name = _name(store, recipe, here)
    return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"model": name})})


def _name(store: Store, recipe: Recipe, here: bool) -> str:
    name = recipe.quantize.model
    if name is None:
        try:
            return _student(store, recipe.name).reference
        except NotFound as error:
            raise NotFound(
                f"quantize.model: none is given, and {store.url} has no student {recipe.name!r}; run "
                f"`tmctl submit distill {recipe.name}` first, or give --model"
            ) from error
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().absolute())
    if here and name.startswith((".", "/", "~")):
        raise ModelError(f"quantize.model = {name!r}: no such folder")
    return name if is_packaged(name) or "/" in name else _student(store, name).reference


def _student(store: Store, reference: str) -> Manifest:
    manifest = find(store, reference)
    if not any(file.path == "config.json" for file in manifest.files):
        raise ModelError(
            f"model {reference!r}: is a {manifest.kind}; a student, a folder or a hub id can be compressed"
        )
    return manifest


def brought(store: Store, name: str, cache: Path) -> tuple[str, Manifest | None]:
    """What `load_musicgen` takes for a pinned name, and the artifact's manifest if it is one."""
    if "@sha256:" not in name:
        return name, None
    manifest = find(store, name)
    folder = cache / "models" / manifest.digest
    if not (folder / ".whole").exists():
        fetch(store, manifest, folder)
        (folder / ".whole").touch()
    return str(folder), manifest

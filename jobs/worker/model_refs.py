"""Resolves references to models: an artifact, a folder, a hub id or a packaged model, downloaded to this machine."""

from __future__ import annotations

from pathlib import Path

from tinymusician.artifacts.manifest import Manifest, fetch_once, find
from tinymusician.artifacts.store import Store
from tinymusician.errors import ModelError, NotFoundError, RecipeError
from tinymusician.models.checkpoint_files import check_model
from tinymusician.models.shape import is_packaged
from tinymusician.recipe import Recipe
from tinymusician.runtime.bundle import MANIFEST as BUNDLE


def resolve(store: Store, recipe: Recipe, kind: str, here: bool) -> Recipe:
    """The recipe with permanent names of its models: an artifact gets its digest, a folder its full path.

    If the job runs `here`, on this machine, a folder must exist.

    Raises:
        NotFoundError, ModelError: there is no such artifact or folder, or it is not a model that can be loaded.
    """
    if kind == "quantize":
        model = recipe.quantize.model or _newest_student(store, recipe, "quantize.model")
        name = _resolve_one(store, model, "quantize.model", here, MODELS)
        return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"model": name})})
    if kind == "evaluate":
        if not recipe.evaluate.evaluates_models:
            return recipe
        models = recipe.evaluate.models or (_newest_student(store, recipe, "evaluate.models"),)
        names = tuple(_resolve_evaluated(store, name, here) for name in models)
        return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"models": names})})
    return recipe


SPECIAL_MODELS = ("teacher", "untrained")
"""Models of an evaluation that need no reference: the recipe's teacher, and its student before any training."""
MODELS, PLAYING = ("config.json",), ("config.json", BUNDLE)
"""Files that identify artifacts: models, and everything that generates audio."""


def parse_label(name: str) -> tuple[str, str]:
    """Label and reference of `LABEL=REF`; without a label, the label is empty."""
    label, equals, reference = name.partition("=")
    return (label, reference) if equals and not name.startswith((".", "/", "~")) else ("", name)


def _resolve_evaluated(store: Store, name: str, here: bool) -> str:
    label, reference = parse_label(name)
    if reference not in SPECIAL_MODELS:
        reference = _resolve_one(store, reference, "evaluate.models", here, PLAYING)
    return f"{label}={reference}" if label else reference


def _newest_student(store: Store, recipe: Recipe, field: str) -> str:
    try:
        return _find_artifact(store, recipe.name, MODELS)
    except NotFoundError as error:
        raise NotFoundError(
            f"{field}: none is given, and {store.url} has no student {recipe.name!r}; run "
            f"`tmctl submit distill {recipe.name}` first, or give --model"
        ) from error


def _resolve_one(store: Store, name: str, field: str, here: bool, files: tuple[str, ...]) -> str:
    if is_packaged(name):
        if here:
            check_model(name)
        return name
    folder = Path(name).expanduser()
    if here and name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ModelError(f"{field} = {name!r}: no such folder")
    if here and not (folder / BUNDLE).is_file() and "@sha256:" not in name:
        check_model(name)
    if folder.is_dir():
        return str(folder.absolute())
    return name if "/" in name else _find_artifact(store, name, files)


def _find_artifact(store: Store, reference: str, files: tuple[str, ...]) -> str:
    manifest = find(store, reference)
    if not any(file.path in files for file in manifest.files):
        kinds = "a student, a folder or a hub id" + (", or a bundle" if BUNDLE in files else "")
        raise ModelError(f"model {reference!r}: is a {manifest.kind}; {kinds} is needed")
    return manifest.reference


def is_bundle(store: Store, reference: str) -> bool:
    """Whether a resolved reference is a bundle, which ONNX Runtime plays on CPUs."""
    if "@sha256:" in reference:
        return any(file.path == BUNDLE for file in find(store, reference).files)
    return (Path(reference).expanduser() / BUNDLE).is_file()


def fetch_artifact(store: Store, name: str, cache: Path) -> tuple[str, Manifest | None]:
    """The argument of `load_musicgen` for a resolved reference, and the artifact's manifest if it is one."""
    if "@sha256:" not in name:
        return name, None
    manifest = find(store, name)
    return str(fetch_once(store, manifest, cache / "models")), manifest


def check_guidance(name: str, guidance: float, range_: tuple[float, float]) -> None:
    """Check that the recipe's guidance scale is in the range of a guidance-conditioned model.

    Raises:
        RecipeError: it is not.
    """
    low, high = range_
    if not low <= guidance <= high:
        raise RecipeError(f"teacher.guidance_scale = {guidance:g}: {name} was distilled for {low:g} to {high:g}")

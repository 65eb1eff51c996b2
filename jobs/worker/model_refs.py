"""The models that a recipe quantizes or evaluates: an artifact, a folder, a hub id or a packaged model."""

from __future__ import annotations

from pathlib import Path

from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.store import Store
from tinymusician.errors import ModelError, NotFoundError, RecipeError
from tinymusician.inputs import input_path, scheme_of
from tinymusician.models.checkpoint_files import check_model
from tinymusician.recipe import Recipe
from tinymusician.runtime.bundle import MANIFEST as BUNDLE


def resolve(store: Store, recipe: Recipe, kind: str) -> Recipe:
    """The recipe, whose inputs are located, with the models that it quantizes or evaluates: by default the newest.

    Raises:
        NotFoundError, ModelError: there is no such artifact, or it is not a model that can be loaded.
    """
    if kind == "quantize":
        name = recipe.quantize.model or _newest_student(store, recipe, "quantize.model")
        _check_model(store, name, MODELS)
        return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"model": name})})
    if kind == "evaluate":
        if not recipe.evaluate.evaluates_models:
            return recipe
        models = recipe.evaluate.models or (_newest_student(store, recipe, "evaluate.models"),)
        for name in models:
            if (reference := parse_label(name)[1]) not in SPECIAL_MODELS:
                _check_model(store, reference, PLAYING)
        return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"models": models})})
    return recipe


SPECIAL_MODELS = ("teacher", "untrained")
"""Models of an evaluation that need no reference: the recipe's teacher, and its student before any training."""
MODELS, PLAYING = ("config.json",), ("config.json", BUNDLE)
"""Files that identify artifacts: models, and everything that generates audio."""


def parse_label(name: str) -> tuple[str, str]:
    """Label and reference of `LABEL=REF`; without a label, the label is empty."""
    label, equals, reference = name.partition("=")
    is_label = equals and "://" not in label and not name.startswith((".", "/", "~"))
    return (label, reference) if is_label else ("", name)


def _newest_student(store: Store, recipe: Recipe, field: str) -> str:
    try:
        return _find_artifact(store, recipe.name, MODELS)
    except NotFoundError as error:
        raise NotFoundError(
            f"{field}: none is given, and {store.url} has no student {recipe.name!r}; run "
            f"`tmctl submit distill {recipe.name}` first, or give --model"
        ) from error


def _check_model(store: Store, name: str, files: tuple[str, ...]) -> None:
    """Check that an artifact, a folder or a packaged model is one that can be loaded."""
    if scheme_of(name) == "artifact":
        _find_artifact(store, name, files)
    elif not (Path(name).expanduser() / BUNDLE).is_file():
        check_model(name)


def _find_artifact(store: Store, reference: str, files: tuple[str, ...]) -> str:
    manifest = find(store, reference)
    if not any(file.path in files for file in manifest.files):
        kinds = "a student, a folder or a hub id" + (", or a bundle" if BUNDLE in files else "")
        raise ModelError(f"model {reference!r}: is a {manifest.kind}; {kinds} is needed")
    return manifest.reference


def is_bundle(store: Store, reference: str) -> bool:
    """Whether a resolved reference is a bundle, which ONNX Runtime plays on CPUs."""
    if scheme_of(reference) == "artifact":
        return any(file.path == BUNDLE for file in find(store, reference).files)
    return (input_path(reference) / BUNDLE).is_file()


def check_guidance(name: str, guidance: float, range_: tuple[float, float]) -> None:
    """Check that the recipe's guidance scale is in the range of a guidance-conditioned model.

    Raises:
        RecipeError: it is not.
    """
    low, high = range_
    if not low <= guidance <= high:
        raise RecipeError(f"teacher.guidance_scale = {guidance:g}: {name} was distilled for {low:g} to {high:g}")

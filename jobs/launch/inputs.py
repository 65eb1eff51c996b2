"""The inputs that a recipe names: each gets an address that every node of the cluster can read.

A job's recipe names packaged inputs, hub ids with their commits, artifacts, and `file://` paths that every node has. A
path of this machine is imported into the store as an artifact, unless the job runs on the local Ray; `https://` is
imported here, and `s3://` by the job itself, unless it is a single file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from pydantic import BaseModel

from jobs.registry import JobKind
from jobs.worker.model_refs import SPECIAL_MODELS, parse_label
from tinymusician.artifacts.import_input import (
    FILE,
    FOLDER,
    MODEL,
    ProgressCallback,
    default_name,
    import_address,
    import_path,
    imported_before,
)
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.sources import without_secrets
from tinymusician.artifacts.store import Store
from tinymusician.data.prompts import PACKAGED as PROMPTS
from tinymusician.errors import ModelError, NotFoundError, RecipeError
from tinymusician.inputs import scheme_of
from tinymusician.models import hub
from tinymusician.models.shape import is_packaged, shape_of
from tinymusician.quantize.precision import PLANS, packaged_plan
from tinymusician.recipe import Recipe, parse_recipe

_TRAINING: tuple[JobKind, ...] = ("precompute", "distill", "sweep", "pipeline")
_QUANTIZING: tuple[JobKind, ...] = ("quantize", "pipeline")
_EVALUATING: tuple[JobKind, ...] = ("evaluate", "sweep", "pipeline")


class InputField(NamedTuple):
    """A key of the recipe that names an input, the input's kind, and the jobs that read it."""

    key: str
    kind: str
    jobs: tuple[JobKind, ...]


_LANGUAGE_MODEL = "understand.language_model.model"
FIELDS = (
    InputField("teacher.model", MODEL, ("precompute", "distill", "sweep", "pipeline", "evaluate")),
    InputField("student.model", MODEL, (*_TRAINING, "evaluate")),
    InputField("sequences.prompts", FILE, (*_TRAINING, "quantize", "evaluate")),
    InputField("sequences.clips", FOLDER, _TRAINING),
    InputField("quantize.model", MODEL, ("quantize",)),
    InputField("quantize.plan", FILE, _QUANTIZING),
    InputField("evaluate.models", MODEL, ("evaluate",)),
    InputField("evaluate.audio", FOLDER, ("evaluate", "pipeline")),
    InputField("evaluate.clap", MODEL, _EVALUATING),
    InputField("evaluate.tagger", MODEL, _EVALUATING),
    InputField("evaluate.judge", MODEL, _EVALUATING),
    InputField("evaluate.prompts", FILE, _EVALUATING),
    InputField("evaluate.reference.audio", FOLDER, _EVALUATING),
    InputField("evaluate.reference.table", FILE, _EVALUATING),
    InputField("evaluate.reference.file", FILE, _EVALUATING),
    InputField("evaluate.embedding.model", MODEL, _EVALUATING),
    InputField("evaluate.embedding.checkpoint", FILE, _EVALUATING),
    InputField("evaluate.embedding.tokenizer", FOLDER, _EVALUATING),
    InputField("publish.baseline", MODEL, ("pipeline",)),
    InputField("understand.encoder.model", MODEL, ("understand",)),
    InputField(_LANGUAGE_MODEL, MODEL, ("understand",)),
    InputField("understand.teacher.model", MODEL, ("understand",)),
)
Section = TypeVar("Section", bound=BaseModel)
_Change = Callable[[InputField, str], str]


def locate_inputs(store: Store, recipe: Recipe, kind: JobKind, on_progress: ProgressCallback) -> Recipe:
    """The recipe with permanent names: absolute paths, artifacts with their digests; what is at https is imported.

    Raises:
        RecipeError: there is no such input here, or at its address.
        StoreError: the store cannot be read or written.
    """
    names: dict[tuple[str, str], str] = {}

    def locate(field: InputField, name: str) -> str:
        """Each name of a kind is located once, so that two keys with one name mean the same."""
        if (place := (field.kind, name)) not in names:
            names[place] = _located(store, field, name, on_progress)
        return names[place]

    located = _changed(recipe, kind, locate)
    return _replaced(located, ["evaluate", "embedding", "environment"], _absolute)


def upload_inputs(store: Store, recipe: Recipe, kind: JobKind, on_progress: ProgressCallback) -> Recipe:
    """The recipe with artifacts instead of paths of this machine, which are imported into the store.

    Raises:
        StoreError: the store cannot be written.
    """
    imported: dict[str, str] = {}

    def upload(field: InputField, name: str) -> str:
        if scheme_of(name) or not Path(name).is_absolute():
            return name
        if name not in imported:
            on_progress(f"{field.key} = {name}: is imported into {store.url}")
            imported[name] = import_path(store, Path(name), _name(name), name, on_progress=on_progress).reference
        return imported[name]

    return _changed(recipe, kind, upload)


def import_remote_inputs(run: RunStore, on_progress: ProgressCallback) -> RunStore:
    """Import what a run's recipe names at `s3://` into the store, and write the artifacts into the run's record.

    Returns the run with that record.

    Raises:
        StoreError: an object cannot be read, or the store cannot be written.
    """
    record = run.record()
    recipe = parse_recipe(record.recipe, run.id)

    def fetch(field: InputField, name: str) -> str:
        if scheme_of(name) != "s3":
            return name
        on_progress(f"{field.key} = {name}: is imported into {run.store.url}")
        return import_address(run.store, name, _name(name), on_progress=on_progress).reference

    if (resolved := _changed(recipe, cast(JobKind, record.kind), fetch)) == recipe:
        return run
    return run.write_record(record.model_copy(update={"recipe": resolved.model_dump(mode="json")}))


def _located(store: Store, field: InputField, name: str, on_progress: ProgressCallback) -> str:
    """The permanent name of an input.

    Raises:
        RecipeError: there is no such input.
    """
    scheme = scheme_of(name)
    try:
        if scheme == "artifact":
            return find(store, name).reference
        if scheme == "s3":
            return _located_in_s3(store, field, name, on_progress)
        if scheme in ("https", "http"):
            on_progress(f"{field.key} = {without_secrets(name)}: is imported into {store.url}")
            return import_address(store, name, _name(name), on_progress=on_progress).reference
        if scheme == "file" or _is_packaged(field, name):
            return name
        if (path := Path(name).expanduser()).exists():
            return str(path.absolute())
        if field.kind == MODEL and "/" in name and not name.startswith((".", "/", "~")):
            return _with_commit(field, name, on_progress)
        if "/" not in name and "." not in name:
            return find(store, name).reference
    except NotFoundError as error:
        if field.key == _LANGUAGE_MODEL:
            advice = "a folder, hub id or artifact is needed; in a checkout, `make smollm` stores smollm2-135m-instruct"
            raise RecipeError(f"{field.key} = {name!r}: {advice}") from error
        if field.kind == MODEL and not scheme:
            shape_of(name)  # says what is allowed
        if field.key == "quantize.plan" and not scheme:
            packaged_plan(name)  # so does this
        raise RecipeError(f"{field.key} = {name!r}: {error}") from error
    raise RecipeError(
        f"{field.key} = {name!r}: no such {'file' if field.kind == FILE else 'folder'} on this machine; "
        "file:///PATH names one that every node of the cluster has"
    )


def _with_commit(field: InputField, name: str, on_progress: ProgressCallback) -> str:
    """A hub id with its commit: all workers, and a run that is resumed later, use the same weights."""
    try:
        return hub.with_commit(name)
    except ModelError as error:
        on_progress(f"{field.key}: is not pinned to a commit, as {error}")
        return name


def _absolute(name: str) -> str:
    """A virtual environment, which is never imported: nodes need it under the same path."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _located_in_s3(store: Store, field: InputField, name: str, on_progress: ProgressCallback) -> str:
    """An address in S3, where there are objects; or the artifact that was made of them."""
    if (before := imported_before(store, name)) is not None:
        return before.reference
    if field.kind != FILE:
        return name
    return import_address(store, name, _name(name), on_progress=on_progress).reference


def _is_packaged(field: InputField, name: str) -> bool:
    if field.key == "quantize.plan":
        return name == "adaptive" or name in PLANS
    if field.key in ("evaluate.models", "evaluate.clap", "publish.baseline") and name in (*SPECIAL_MODELS, "embedding"):
        return True
    return is_packaged(name) if field.kind == MODEL else name in PROMPTS


def _name(source: str) -> str:
    """The name of an artifact that is made of an input: no name of a recipe begins so."""
    return f"input-{default_name(source)}"


def _changed(recipe: Recipe, kind: JobKind, change: _Change) -> Recipe:
    """The recipe after a change of the inputs that a job of this kind reads."""
    unused = () if kind != "evaluate" or recipe.evaluate.evaluates_models else ("teacher.model", "student.model")
    for field in FIELDS:
        if kind in field.jobs and field.key not in unused:
            recipe = _replaced(recipe, field.key.split("."), partial(change, field))
    return recipe


def _replaced(section: Section, keys: list[str], change: Callable[[str], str]) -> Section:
    """A section of a recipe after a change of the names under a key; which keys were given stays recorded."""
    key, *rest = keys
    value = getattr(section, key, None)
    if not value:
        return section
    if rest:
        changed = _replaced(value, rest, change)
    elif isinstance(value, tuple):
        changed = tuple(_labelled(entry, change) for entry in value)
    else:
        changed = change(value) if isinstance(value, str) else value
    return section if changed == value else section.model_copy(update={key: changed})


def _labelled(entry: str, change: Callable[[str], str]) -> str:
    """An entry LABEL=NAME after a change of its name; a path that becomes an artifact keeps its last part as label."""
    label, name = parse_label(entry)
    changed = change(name)
    if not label and changed != name and scheme_of(changed) == "artifact" and not scheme_of(name):
        label = Path(name).name
    return f"{label}={changed}" if label else changed

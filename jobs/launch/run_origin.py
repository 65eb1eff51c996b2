"""What a run began with: a resumed run continues with that recipe, whatever the store says by then."""

from __future__ import annotations

import secrets

from jobs.launch.submit import RESUMABLE_KEYS
from tinymusician.artifacts.authenticated_store import WorkingKeys
from tinymusician.artifacts.run_state import RunOrigin
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import NotFoundError, RunError, UntrustedError
from tinymusician.json_types import JsonObject
from tinymusician.recipe import parse_recipe


def begin(run: RunStore, shared_key: bytes, is_resumed: bool) -> RunStore:
    """The run in an authenticated store: a new one, or one that continues where it was interrupted.

    Raises:
        RunError: it is to continue, and has not begun.
        UntrustedError: it is to continue with another recipe than it began with.
    """
    opened = run.authenticated(WorkingKeys(shared_key, shared_key))
    recipe = run.record().recipe
    if is_resumed:
        origin = _origin(opened)
        if _unchangeable(origin.recipe) != _unchangeable(recipe):
            raise UntrustedError(
                f"run {run.id!r}: began with another recipe than its record in {run.store.url} has now; start a new run"
            )
    else:
        origin = RunOrigin(recipe=recipe, nonce=secrets.token_hex(16))
        opened.write_origin(origin)
    return run.authenticated(WorkingKeys.of_run(shared_key, origin.nonce))


def _origin(run: RunStore) -> RunOrigin:
    try:
        return run.origin()
    except NotFoundError:
        raise RunError(f"run {run.id!r}: has not begun, so there is nothing to resume; start a new run") from None


def _unchangeable(content: JsonObject) -> JsonObject:
    """A recipe, as this version reads it, without the keys that may change."""
    result: JsonObject = parse_recipe(content, "origin").model_dump(mode="json")
    for name in RESUMABLE_KEYS:
        section, _, key = name.partition(".")
        result[section].pop(key, None)
    return result

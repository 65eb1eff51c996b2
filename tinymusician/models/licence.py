"""The licence that a model inherits from the weights it was derived from."""

from __future__ import annotations

from collections.abc import Iterable

from tinymusician.artifacts.import_input import UNKNOWN_LICENCE
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.open import open_store
from tinymusician.inputs import scheme_of
from tinymusician.models.shape import is_packaged

HOUSE_BAND_LICENCE = "Apache-2.0 (weights made by this project; see the house band's model card for the data)"
_UNSTATED = "the licence of a model that states none"
MUSICGEN_LICENCE = "CC-BY-NC-4.0 (derived from MusicGen's weights)"


def audio_lm_licence(models: Iterable[str]) -> str:
    """The licence of a model that answers questions: the house band's, and those that the models in it state."""
    stated = {part for name in models for part in (_stated(name) or _UNSTATED).split(" and ")}
    return " and ".join(sorted({HOUSE_BAND_LICENCE, *stated}))


def inherited_licence(models: Iterable[str]) -> str:
    """The licence of what is derived from these models: the packaged ones' is the project's, artifacts state theirs.

    Others, and artifacts that state none, are taken for MusicGen's.
    """
    licences = {_stated(name) or MUSICGEN_LICENCE for name in models}
    return " and ".join(sorted(licences)) if MUSICGEN_LICENCE not in licences else MUSICGEN_LICENCE


def _stated(name: str) -> str | None:
    """The licence that a packaged model or an artifact states."""
    if is_packaged(name):
        return HOUSE_BAND_LICENCE
    stated = find(open_store(), name).licence if scheme_of(name) == "artifact" else UNKNOWN_LICENCE
    return None if stated == UNKNOWN_LICENCE else stated

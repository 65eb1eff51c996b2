"""The licence that a model inherits from the weights it was derived from."""

from __future__ import annotations

from collections.abc import Iterable

from tinymusician.artifacts.import_input import UNKNOWN_LICENCE
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.open import open_store
from tinymusician.inputs import scheme_of
from tinymusician.models.shape import is_packaged

HOUSE_BAND_LICENCE = "Apache-2.0 (weights made by this project; see the house band's model card for the data)"
MUSICGEN_LICENCE = "CC-BY-NC-4.0 (derived from MusicGen's weights)"


def inherited_licence(models: Iterable[str]) -> str:
    """The licence of what is derived from these models: the packaged ones' is the project's, artifacts state theirs.

    Others, and artifacts that state none, are taken for MusicGen's.
    """
    licences = {_licence_of(name) for name in models}
    return " and ".join(sorted(licences)) if MUSICGEN_LICENCE not in licences else MUSICGEN_LICENCE


def _licence_of(name: str) -> str:
    if is_packaged(name):
        return HOUSE_BAND_LICENCE
    stated = find(open_store(), name).licence if scheme_of(name) == "artifact" else UNKNOWN_LICENCE
    return MUSICGEN_LICENCE if stated == UNKNOWN_LICENCE else stated

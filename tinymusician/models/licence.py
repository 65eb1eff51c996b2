"""The licence that a model inherits from the weights it was derived from."""

from __future__ import annotations

from collections.abc import Iterable

from tinymusician.models.shape import is_packaged

HOUSE_BAND_LICENCE = "Apache-2.0 (weights made by this project; see the house band's model card for the data)"
MUSICGEN_LICENCE = "CC-BY-NC-4.0 (derived from MusicGen's weights)"


def inherited_licence(models: Iterable[str]) -> str:
    """The licence of what is derived from these models, by name: packaged ones are the project's, others MusicGen's."""
    return HOUSE_BAND_LICENCE if all(is_packaged(name) for name in models) else MUSICGEN_LICENCE

"""Where the bundle to play comes from: a place that stays, or a release that is followed as its alias moves.

Engines of one machine share a folder, so that a release is brought to it once. The one before stays there: if the
newest cannot be played, a new engine plays that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from platformdirs import user_cache_path

from serve.config import ServeConfig
from serve.resolve import resolve_bundle
from tinymusician.artifacts.installation import InstalledVersion
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.sources import open_source
from tinymusician.errors import StoreError
from tinymusician.runtime.bundle import MANIFEST, open_bundle


@dataclass(frozen=True)
class ResolvedBundle:
    """A bundle's folder; `version` is its release's where it is one. `mark` tells one from another."""

    folder: Path
    mark: str
    version: InstalledVersion | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of its manifest, which names every file by its own: the same here and on every device."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()


class BundleSource(Protocol):
    """Where bundles come from."""

    def check(self) -> None:
        """See whether there is something to play, before anything is started for it.

        Raises:
            StoreError, BundleError: there is nothing.
        """

    def bundles(self) -> Iterator[ResolvedBundle]:
        """What can be played, the best first.

        Raises:
            StoreError: nothing can be had.
        """

    def newer(self, refused: Collection[str]) -> ResolvedBundle | None:
        """What there is now, if that can move and is none of those that were `refused`, by their marks.

        Raises:
            StoreError: it cannot be had now; what is there stays.
        """

    def refuse(self, bundle: ResolvedBundle) -> None:
        """Take note that a bundle is not to be played, so that the one before it is kept."""


def open_bundle_source(settings: ServeConfig) -> BundleSource:
    """The shelf that the settings mean."""
    if not settings.follows:
        return StaticSource(settings.model)
    urls = settings.sources or (open_store().url,)
    folder = user_cache_path("tinymusician") / "serve" / settings.model
    return AliasSource(PullClient(settings.model, folder, [open_source(url) for url in urls], settings.root_key))


class StaticSource:
    """A folder, or an artifact of the store."""

    def __init__(self, model: str) -> None:
        self._model = model

    def check(self) -> None:
        open_bundle(resolve_bundle(self._model))

    def bundles(self) -> Iterator[ResolvedBundle]:
        folder = resolve_bundle(self._model)
        yield ResolvedBundle(folder, str(folder))

    def newer(self, refused: Collection[str]) -> ResolvedBundle | None:
        return None

    def refuse(self, bundle: ResolvedBundle) -> None:
        """There is no other."""


class AliasSource:
    """A release's newest version."""

    def __init__(self, client: PullClient) -> None:
        self._client = client

    def check(self) -> None:
        if self._client.installation.usable() is None:  # what is installed is played without any store
            self._client.check()

    def bundles(self) -> Iterator[ResolvedBundle]:
        trouble: StoreError | None = None
        try:
            self._client.pull()
        except StoreError as error:  # what is installed can be played without any store
            trouble = error
        installation = self._client.installation
        record = installation.record()
        versions = [one for one in (record.current, record.previous) if one] if record else []
        whole = [version for version in versions if installation.is_whole(version)]
        if not whole:
            raise trouble or StoreError(f"{installation.folder}: no version is whole; pull again")
        yield from (self._resolved(version) for version in whole)

    def newer(self, refused: Collection[str]) -> ResolvedBundle | None:
        offer = self._client.check()
        if offer.version.digest in refused:
            return None
        return self._resolved(self._client.pull() if offer.is_new else offer.version)

    def refuse(self, bundle: ResolvedBundle) -> None:
        self._client.installation.step_back(bundle.mark)

    def _resolved(self, version: InstalledVersion) -> ResolvedBundle:
        return ResolvedBundle(self._client.installation.folder / version.folder, version.digest, version)

"""Where the endpoint's bundle comes from: a fixed folder or artifact, or a release alias that is polled.

The engines of one machine share a folder, so a release is downloaded once. The previous version stays in it: a new
engine falls back to it if the newest version cannot be played.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from serve.config import ServeConfig
from tinymusician.artifacts.installation import InstalledVersion
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.pull import PullClient, SignedDocument
from tinymusician.artifacts.sources import open_source
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.errors import StoreError
from tinymusician.runtime.audio_lm_bundle import open_audio_lm
from tinymusician.runtime.bundle import manifest_digest, open_bundle
from tinymusician.user_folders import user_folder


@dataclass(frozen=True)
class ResolvedBundle:
    """A bundle's folder. `version_id` identifies it; `version` is its release, if it has one."""

    folder: Path
    version_id: str
    version: InstalledVersion | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of its manifest."""
        return manifest_digest(self.folder)


class BundleSource(Protocol):
    """A source of bundles."""

    def check(self) -> str | None:
        """Check that there is a bundle, before an engine is started; returns its digest if it cannot change.

        Raises:
            StoreError: the store cannot be read, or has no such bundle.
            BundleError: the artifact or folder is not a bundle.
        """

    def candidates(self) -> Iterator[ResolvedBundle]:
        """The bundles to try at start, best first.

        Raises:
            StoreError: none is available.
        """

    def poll(self, rejected: Collection[str]) -> ResolvedBundle | None:
        """The bundle to play now; None if it cannot change or its version id is among the `rejected`.

        Raises:
            StoreError: the source is unavailable now.
        """

    def reject(self, bundle: ResolvedBundle) -> None:
        """Mark a bundle as unusable, so that the previous version is kept."""

    @property
    def expiries(self) -> Mapping[SignedDocument, datetime]:
        """When the signed documents expire on which the last poll relied."""


def open_bundle_source(config: ServeConfig) -> BundleSource:
    """The source of the configured model: NAME@ALIAS is polled, anything else is fixed."""
    if not config.is_alias:
        return StaticSource(config.model)
    urls = config.sources or (open_store().url,)
    folder = user_folder("cache") / "serve" / config.model
    sources = [open_source(url) for url in urls]
    document = config.root_document.encode() if config.root_document is not None else None
    client = PullClient(
        config.model, folder, sources, config.root_key, start_despite_expiry=True, root_document=document
    )
    return AliasSource(client)


def questions_config(config: ServeConfig) -> ServeConfig:
    """The configuration whose model is the bundle that answers questions."""
    assert config.questions_model is not None
    return config.model_copy(update={"model": config.questions_model})


def check_questions_model(config: ServeConfig) -> None:
    """Check that the bundle that answers questions is there.

    Raises:
        StoreError: the store cannot be read, or has no such bundle.
        BundleError: the artifact or folder does not answer questions.
    """
    questions = questions_config(config)
    if questions.is_alias:
        open_bundle_source(questions).check()
    else:
        open_audio_lm(resolve_bundle(questions.model))


class StaticSource:
    """A folder, or an artifact of the store."""

    def __init__(self, model: str) -> None:
        self._model = model

    def check(self) -> str:
        (bundle,) = self.candidates()
        open_bundle(bundle.folder)
        return bundle.digest

    def candidates(self) -> Iterator[ResolvedBundle]:
        folder = resolve_bundle(self._model)
        yield ResolvedBundle(folder, str(folder))

    def poll(self, rejected: Collection[str]) -> ResolvedBundle | None:
        return None

    def reject(self, bundle: ResolvedBundle) -> None:
        """Does nothing: there is no other version."""

    @property
    def expiries(self) -> Mapping[SignedDocument, datetime]:
        return {}


class AliasSource:
    """The newest version of a release."""

    def __init__(self, client: PullClient) -> None:
        self._client = client

    def check(self) -> None:
        if self._client.installation.usable() is None:  # an installed version needs no store
            self._client.check()

    def candidates(self) -> Iterator[ResolvedBundle]:
        pull_error: StoreError | None = None
        try:
            self._client.pull()
        except StoreError as error:  # an installed version needs no store
            pull_error = error
        installation = self._client.installation
        record = installation.record()
        versions = [one for one in (record.current, record.previous) if one] if record else []
        complete = [version for version in versions if installation.is_complete(version)]
        if not complete:
            raise pull_error or StoreError(f"{installation.folder}: no version is complete; pull again")
        yield from (self._resolved(version) for version in complete)

    def poll(self, rejected: Collection[str]) -> ResolvedBundle | None:
        update = self._client.check()
        if update.version.digest in rejected:
            return None
        return self._resolved(self._client.pull() if update.is_new else update.version)

    def reject(self, bundle: ResolvedBundle) -> None:
        self._client.installation.roll_back(bundle.version_id)

    @property
    def expiries(self) -> Mapping[SignedDocument, datetime]:
        return self._client.expiries

    def _resolved(self, version: InstalledVersion) -> ResolvedBundle:
        return ResolvedBundle(self._client.installation.folder / version.folder, version.digest, version)

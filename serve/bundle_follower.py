"""Holds the bundle that a replica plays, and loads another one when the alias moves.

A new bundle is loaded beside the old one, which is used until then. A bundle that cannot be loaded is rejected and not
tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeVar

from ray.util.metrics import Gauge

from serve.bundle_files import ServedFiles
from serve.bundle_source import ResolvedBundle, open_bundle_source
from serve.config import ServeConfig
from serve.log import log_event
from tinymusician.artifacts.run_state import now
from tinymusician.errors import EngineError, contain_panics

Outcome = Literal["accepted", "rejected", "store_error"]


class Loaded(Protocol):
    """A bundle that is loaded from a source."""

    source: ResolvedBundle
    files: ServedFiles

    def close(self) -> None:
        """Accept no more work; what runs is completed."""


LoadedT = TypeVar("LoadedT", bound=Loaded)


class BundleFollower(Generic[LoadedT]):
    """The loaded bundle of a configuration's model, `current`.

    `recent` are its files and those of the one before, which the installation retains: downloads of that one go on.
    """

    def __init__(
        self,
        config: ServeConfig,
        load: Callable[[ResolvedBundle], LoadedT],
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """Load the best bundle that works. `on_outcome` counts what polls lead to.

        Raises:
            TinyMusicianError: no bundle can be loaded.
        """
        self._load, self._on_outcome, self._interval = load, on_outcome, config.poll_interval_s
        self._source = open_bundle_source(config)
        self._rejected: set[str] = set()
        self._closed = threading.Event()
        self.current = self._load_first()
        self.recent: tuple[ServedFiles, ...] = (self.current.files,)
        self._thread: threading.Thread | None = None
        if config.is_alias:
            self._thread = threading.Thread(target=self._poll, name="bundle-poll", daemon=True)
            self._thread.start()

    def check_health(self) -> None:
        """Check that the alias is followed.

        Raises:
            EngineError: the thread that does it has ended.
        """
        if self._thread is not None and not self._thread.is_alive() and not self._closed.is_set():
            raise EngineError("the thread that follows the alias has ended")

    def update_expiry(self, gauge: Gauge) -> None:
        """Set how long the signed documents of the alias are valid; nothing for a bundle without a release."""
        for document, date in dict(self._source.expiries).items():
            gauge.set((date - now()).total_seconds(), tags={"document": document})

    def close(self) -> None:
        """Stop polling the alias, and close the bundle."""
        self._closed.set()
        self.current.close()

    def _load_first(self) -> LoadedT:
        first_error: Exception | None = None
        for source in self._source.candidates():
            try:
                with contain_panics():
                    return self._load(source)
            except Exception as error:  # whatever is wrong with this version, the previous one may work
                first_error = first_error or error
                self._reject(source, error)
        assert first_error is not None  # a source without candidates raises
        raise first_error

    def _poll(self) -> None:
        while not self._closed.wait(self._interval):
            try:
                with contain_panics():
                    source = self._source.poll(self._rejected)
            except Exception as error:  # whatever it is, the next poll may succeed
                self._on_outcome("store_error")
                log_event("store_error", error=str(error))
                continue
            if source is not None and source.version_id != self.current.source.version_id:
                self._try_reload(source)

    def _try_reload(self, source: ResolvedBundle) -> None:
        """Load a bundle and switch to it, or reject it."""
        try:
            with contain_panics():
                self._switch(self._load(source))
        except Exception as error:
            if isinstance(error, MemoryError | OSError) or isinstance(error.__cause__, MemoryError):
                log_event("bundle_postponed", folder=str(source.folder), error=str(error))  # temporary: tried again
            else:
                self._reject(source, error)

    def _switch(self, bundle: LoadedT) -> None:
        before, self.current = self.current, bundle
        self.recent = (bundle.files, before.files)
        before.close()
        if self._closed.is_set():
            bundle.close()
        self._on_outcome("accepted")
        log_event("bundle_switched", digest=bundle.source.digest, before=before.source.version_id)

    def _reject(self, source: ResolvedBundle, error: Exception) -> None:
        self._rejected.add(source.version_id)
        self._source.reject(source)
        self._on_outcome("rejected")
        log_event("bundle_rejected", folder=str(source.folder), error=str(error))

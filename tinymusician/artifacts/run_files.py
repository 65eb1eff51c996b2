"""Reads and writes the files of a run in a store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from tinymusician.artifacts.run_state import now
from tinymusician.artifacts.store import Store
from tinymusician.config_model import Document
from tinymusician.errors import DigestMismatchError, NotFoundError

_Document = TypeVar("_Document", bound=Document)


class RunFiles:
    """The files of one run. With `record_sha256`, its record must be the one that was submitted."""

    def __init__(
        self, store: Store, run: str, clock: Callable[[], datetime] = now, record_sha256: str | None = None
    ) -> None:
        self.store, self.id, self._clock, self.record_sha256 = store, run, clock, record_sha256

    def key(self, name: str) -> str:
        """The key of a file of this run."""
        return f"runs/{self.id}/{name}"

    def _text(self, name: str) -> str | None:
        content = self._bytes(name)
        return None if content is None else content.decode()

    def _bytes(self, name: str) -> bytes | None:
        try:
            return self.store.get(self.key(name))
        except NotFoundError:
            return None

    def _read(self, name: str, kind: type[_Document]) -> _Document:
        try:
            return kind.model_validate_json(self.store.get(self.key(name)))
        except ValidationError as error:
            raise DigestMismatchError(f"run {self.id!r}: {self.key(name)} in {self.store.url} is damaged") from error

    def _write(self, name: str, document: Document) -> None:
        self.store.put(self.key(name), document.model_dump_json(indent=2).encode())

"""A device's folder: what is installed, the version before it, and what is on its way.

installed.json            what is in use; replaced in one step when a new version is whole
versions/VERSION-DIGEST/  the files of a version, read-only, hard links to blobs where the file system can
blobs/DIGEST              files by digest, shared by versions
partial/                  files on their way
lock                      held by the one that changes anything

An app reads `installed.json` and opens the folder that it names. Until that file is replaced, nothing has happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.artifacts.blobs import digest_of
from tinymusician.artifacts.release import Release
from tinymusician.artifacts.trust import RootMetadata
from tinymusician.errors import StoreError

RECORD = "installed.json"


class InstalledVersion(BaseModel):
    """A version that is there whole. `digest` is that of its signed release."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    release: Release
    digest: str

    @property
    def folder(self) -> str:
        """Its folder's place below the device's folder."""
        return f"versions/{self.release.version}-{self.digest[:12]}"


class InstallState(BaseModel):
    """What a device knows.

    `seen` is the latest date that a trusted document bears: the present lies not before it. `known` is the highest
    version of every release that was ever installed here, with its digest; `followed` every root key that was trusted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pinned: str
    root: RootMetadata
    seen: datetime
    latest: dict[str, tuple[int, str]] = {}
    followed: tuple[str, ...] = ()
    current: InstalledVersion | None = None
    previous: InstalledVersion | None = None


class Installation:
    """One device's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self) -> InstallState | None:
        """What is installed, None if nothing ever was.

        Raises:
            StoreError: the record is damaged.
        """
        path = self.folder / RECORD
        try:
            return InstallState.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise StoreError(f"{path}: is damaged; remove it, and pull again") from None

    def usable(self) -> tuple[InstalledVersion, Path] | None:
        """The version to play from: the current one, or the one before if files of the current one are gone."""
        record = self.record()
        for version in (record.current, record.previous) if record else ():
            if version is not None and self.is_whole(version):
                return version, self.folder / version.folder
        return None

    def is_whole(self, version: InstalledVersion) -> bool:
        """Whether all files of a version are there, byte by byte."""
        files = [(self.folder / version.folder / file.path, file) for file in version.release.files]
        return all(path.is_file() and path.stat().st_size == file.size for path, file in files) and all(
            digest_of(path) == file.sha256 for path, file in files
        )

    def can_link(self) -> bool:
        """Whether the file system has hard links, so that a version's folder takes no room beside its blobs."""
        path, link = self.folder / "lock", self.folder / f".link-{os.getpid()}"
        try:
            os.link(path, link)
        except OSError:
            return False
        link.unlink()
        return True

    def write(self, record: InstallState) -> None:
        """Replace the record in one step."""
        with atomic_write(self.folder / RECORD) as draft:
            draft.write_text(record.model_dump_json(indent=2))

    def lay_out(self, version: InstalledVersion) -> None:
        """Make a version's folder out of blobs that are there; it appears whole."""
        place = self.folder / version.folder
        if self.is_whole(version):
            return
        draft = place.with_name(f"{place.name}.draft")
        for left in (draft, place):
            shutil.rmtree(left, ignore_errors=True)
        for file in version.release.files:
            path = draft / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            _linked(self.folder / "blobs" / file.sha256, path)
        for path in (*draft.rglob("*"), draft):
            _flushed(path)
        os.replace(draft, place)
        _flushed(place.parent)

    def step_back(self, digest: str) -> None:
        """Go back to the version before this one, if this one is in use: it is whole, and yet no good."""
        with self.locked():
            record = self.record()
            if record and record.current and record.current.digest == digest and record.previous:
                self.write(record.model_copy(update={"current": record.previous, "previous": None}))

    def tidy(self, record: InstallState) -> None:
        """Remove versions, blobs and partial files that neither the current nor the previous version needs."""
        retained = [version for version in (record.current, record.previous) if version is not None]
        folders = {Path(version.folder).name for version in retained}
        blobs = {file.sha256 for version in retained for file in version.release.files}
        for path in (self.folder / "versions").glob("*"):
            if path.name not in folders:
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "blobs").glob("*"):
            if path.name not in blobs:
                path.unlink(missing_ok=True)
        self.remove_partial_except(())

    def remove_partial_except(self, digests: Iterable[str]) -> None:
        """Remove what arrived of other files, so that it takes no room."""
        retained = set(digests)
        for path in (self.folder / "partial").glob("*"):
            if path.name.removesuffix(".tag") not in retained:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The right to change the folder; whoever comes second waits. The system gives it back for those that die."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _linked(blob: Path, path: Path) -> None:
    try:
        os.link(blob, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(blob, path)
        path.chmod(0o444)


def _flushed(path: Path) -> None:
    """Write a file or a folder to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A device's folder: the installed version, the previous one, and partial downloads.

installed.json            the version in use; replaced atomically when a new version is complete
versions/VERSION-DIGEST/  the files of a version, read-only; hard links to blobs if the file system has them
blobs/DIGEST              files by digest, shared by versions
partial/                  partial downloads
lock                      held while the folder is changed

An app reads `installed.json` and opens the folder that it names. An update takes effect when this file is replaced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tinymusician.artifacts.atomic import atomic_write, flush, lock_file, open_lock
from tinymusician.artifacts.blobs import digest_of
from tinymusician.artifacts.release import Release, ReleasedFile
from tinymusician.artifacts.trust import SPEC, RootMetadata
from tinymusician.errors import StoreError

RECORD = "installed.json"


class InstalledVersion(BaseModel):
    """An installed version. `digest` is that of its release's payload, `signers` are ids of the keys that signed it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    release: Release
    digest: str
    signers: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The path of its folder, relative to the device's folder."""
        return f"versions/{self.release.version}-{self.digest[:12]}"


class InstallState(BaseModel):
    """The persistent state of a device.

    `seen` is the latest date of a trusted document, a lower bound of the current time. `latest` maps every release that
    was ever installed here to its highest version and digest. `followed` are the root keys that were ever trusted.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    spec: Literal[2] = SPEC
    pinned: str
    root: RootMetadata
    seen: datetime
    latest: dict[str, tuple[int, str]] = {}
    followed: tuple[str, ...] = ()
    current: InstalledVersion | None = None
    previous: InstalledVersion | None = None


class Installation:
    """The folder of one device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self) -> InstallState | None:
        """The persistent state; None before the first installation, and if it is damaged or a newer client wrote it.

        Raises:
            StoreError: the file cannot be read.
        """
        path = self.folder / RECORD
        try:
            return InstallState.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from None

    def set_aside_damaged_record(self) -> None:
        """Rename a state that cannot be read to `installed.json.damaged`, so that the next pull builds a new one.

        Files that were installed are found again by their digests. The highest versions of all are forgotten.
        """
        path = self.folder / RECORD
        if path.exists() and self.record() is None:
            os.replace(path, path.with_name(f"{RECORD}.damaged"))
            flush(self.folder)

    def usable(self) -> tuple[InstalledVersion, Path] | None:
        """The version to use: the current one, or the previous one if files of the current one are missing."""
        record = self.record()
        for version in (record.current, record.previous) if record else ():
            if version is not None and self.is_complete(version):
                return version, self.folder / version.folder
        return None

    def is_complete(self, version: InstalledVersion) -> bool:
        """Whether all files of a version exist with the right digests."""
        return _are_intact((self.folder / version.folder / file.path, file) for file in version.release.files)

    def restore(self, version: InstalledVersion) -> bool:
        """Create a damaged version again from its blobs; whether it is complete now.

        Versions share the bytes of equal files: a byte that changed in one has changed in both, and one download of the
        file must repair both.
        """
        if not self.is_complete(version):
            if not _are_intact((self.folder / "blobs" / file.sha256, file) for file in version.release.files):
                return False
            self.create_version(version)
        return True

    def can_link(self) -> bool:
        """Whether the file system has hard links; then a version's folder needs no space beyond its blobs."""
        path, link = self.folder / "lock", self.folder / f".link-{os.getpid()}"
        link.unlink(missing_ok=True)  # of a process of the same number that was killed
        try:
            os.link(path, link)
        except OSError:
            return False
        link.unlink()
        return True

    def write(self, record: InstallState) -> None:
        """Replace the state atomically."""
        with atomic_write(self.folder / RECORD) as draft:
            draft.write_text(record.model_dump_json(indent=2))

    def create_version(self, version: InstalledVersion) -> None:
        """Create a version's folder from its blobs, atomically."""
        place = self.folder / version.folder
        if self.is_complete(version):
            return
        draft = place.with_name(f"{place.name}.draft")
        for left in (draft, place):
            shutil.rmtree(left, ignore_errors=True)
        for file in version.release.files:
            path = draft / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(self.folder / "blobs" / file.sha256, path)
        for path in (*draft.rglob("*"), draft):
            flush(path)
        os.replace(draft, place)
        flush(place.parent)

    def roll_back(self, digest: str) -> None:
        """Return to the previous version if this one is in use: it is complete but unusable."""
        with self.locked():
            record = self.record()
            if record and record.current and record.current.digest == digest and record.previous:
                self.write(record.model_copy(update={"current": record.previous, "previous": None}))

    def remove_unused(self, record: InstallState) -> None:
        """Remove versions, blobs and partial files other than those of the current and previous version."""
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
        """Remove partial downloads of other files."""
        retained = set(digests)
        for path in (self.folder / "partial").glob("*"):
            if path.name.removesuffix(".tag") not in retained:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock; the system releases it if the process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_lock(self.folder / "lock") as file:
            lock_file(file)
            yield


def _are_intact(paths: Iterable[tuple[Path, ReleasedFile]]) -> bool:
    """Whether all files exist with the right digests; their sizes are compared first."""
    files = list(paths)
    return all(path.is_file() and path.stat().st_size == file.size for path, file in files) and all(
        digest_of(path) == file.sha256 for path, file in files
    )


def _link(blob: Path, path: Path) -> None:
    try:
        os.link(blob, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(blob, path)
        path.chmod(path.stat().st_mode & 0o444)

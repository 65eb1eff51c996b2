"""Describes a loaded bundle, and sends its files to devices, in chunks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import NamedTuple

from serve.bundle_source import ResolvedBundle
from serve.byte_range import ByteRange
from serve.schemas import BundleInfo
from tinymusician.errors import NotFoundError
from tinymusician.runtime.audio_lm_bundle import AudioLMManifest
from tinymusician.runtime.bundle import MANIFEST
from tinymusician.runtime.bundle_manifest import BundleFile, BundleManifest

_CHUNK = 1 << 20
"""Bytes per message."""


class ServedFiles(NamedTuple):
    """The files of a loaded bundle, whose manifest has this digest."""

    folder: Path
    digest: str
    files: tuple[BundleFile, ...]


def bundle_info(source: ResolvedBundle, digest: str, manifest: BundleManifest | AudioLMManifest) -> BundleInfo:
    """What both kinds of loaded bundles tell of themselves."""
    version = source.version
    return BundleInfo(
        id=version.release.reference if version else manifest.name,
        digest=digest,
        version=version.release.version if version else None,
        artifact=version.release.artifact if version else None,
        licence=manifest.licence,
        bytes=sum(file.size for file in manifest.files),
        minimum_memory=manifest.minimum_memory,
        sampling_rate=manifest.architecture.sampling_rate,
    )


async def bundle_file(
    bundles: Sequence[ServedFiles], digest: str, path: str, part: ByteRange
) -> AsyncGenerator[int | bytes, None]:
    """Yield the size of a file of the bundle with this digest, then the bytes of a part of it.

    Raises:
        NotFoundError: none of the bundles has this digest, or it has no such file (any more).
    """
    missing = NotFoundError(f"bundle {digest[:12]}: {path!r} is not served here")
    bundle = next((one for one in bundles if one.digest == digest), None)
    if bundle is None or path not in {MANIFEST, *(file.path for file in bundle.files)}:
        raise missing
    try:
        file = (bundle.folder / path).open("rb")
    except FileNotFoundError:  # two releases later
        raise missing from None
    with file:
        yield (size := os.fstat(file.fileno()).st_size)
        start, stop = part.within(size) or (0, 0)
        file.seek(start)
        while start < stop and (chunk := await asyncio.to_thread(file.read, min(_CHUNK, stop - start))):
            start += len(chunk)
            yield chunk

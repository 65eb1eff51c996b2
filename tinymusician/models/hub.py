"""Models of the Hugging Face Hub: OWNER/NAME, or OWNER/NAME@REVISION for a branch, tag or commit."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from tinymusician.errors import ModelError

FILES = ("*.json", "*.safetensors", "spiece.model")
"""What is downloaded: configurations, weights, tokenizers. Nothing that needs pickle."""


_ANSWER_SECONDS = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK_FULL = "No space left on device"


def split_revision(name: str) -> tuple[str, str | None]:
    """Id and revision of a hub model; the revision is None if the name has none."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def download(name: str) -> Path:
    """The folder of a hub model in the cache of huggingface_hub, downloaded if it is not complete there.

    Raises:
        ModelError: it cannot be had; the message says why, and what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, revision = split_revision(name)
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except (OSError, RuntimeError, HFValidationError) as error:  # HTTP's are OSErrors, those of hf_xet RuntimeErrors
        raise ModelError(f"model {name!r}: {_advice(error, repository, revision)}") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {name!r}: has no safetensors on the hub, or only a part of it is in the cache; download all of it "
            f"(`hf download {repository} --local-dir FOLDER`), and `tmctl models convert FOLDER NEW` converts it"
        )
    return folder


def with_commit(name: str) -> str:
    """The name of a hub model with the commit at which its branch or tag is now: OWNER/NAME@COMMIT.

    The hub says it; the cache does where the hub cannot be reached, or does not know who wants to know.

    Raises:
        ModelError: neither does; the message says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    repository, revision = split_revision(name)
    if revision is not None and _COMMIT.fullmatch(revision):
        return name
    try:
        commit = HfApi().model_info(repository, revision=revision or "main", timeout=_ANSWER_SECONDS).sha
    except (OSError, RuntimeError, HFValidationError) as error:
        if (commit := cached_commit(name) or _newest_snapshot(repository, revision)) is None:
            raise ModelError(f"model {name!r}: {_advice(error, repository, revision)}") from error
    return f"{repository}@{commit}" if commit else name


def _newest_snapshot(repository: str, revision: str | None) -> str | None:
    """The commit that was downloaded last: a download by commit leaves no name of a branch behind."""
    from huggingface_hub import constants

    if revision is not None:
        return None
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    commits = [path.parent for path in folder.glob("*/config.json")]
    return max(commits, key=lambda path: path.stat().st_mtime).name if commits else None


def cached_file(name: str, file: str) -> Path | None:
    """The path of a file of a hub model in the cache; None if it is not there. Nothing is requested."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, revision = split_revision(name)
    try:
        path = try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def cached_commit(name: str) -> str | None:
    """The commit hash of a hub model in the cache; None if it is not there."""
    path = cached_file(name, "config.json")
    return path.parent.name if path else None


def _advice(error: Exception, repository: str, revision: str | None) -> str:
    """What is wrong, and what to do: the first type that fits, from special to general."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated; accept its terms on {page}, and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision}; {page}/tree/main lists them"
    if isinstance(error, errors.LocalEntryNotFoundError):  # an HTTP error too, without a response
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _http_advice(error.__cause__, page)
        files = ", ".join(FILES)
        return (
            f"is not in the cache, and the hub cannot be reached ({_reason(error)}); "
            f"download its {files} into a folder on another machine, and give the folder's path"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _http_advice(error, page)
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _DISK_FULL in str(error):
        return f"the disk of {constants.HF_HUB_CACHE} is full; free some of it, or set HF_HOME to a folder elsewhere"
    return f"cannot be downloaded ({_reason(error)})"


def _http_advice(error: Exception, page: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return f"the hub cannot be reached ({_reason(error)}); try again later"
    if status in (401, 403):
        return (
            f"the hub answers {status}: no such model, or a private one; check {page}, and log in with "
            "`hf auth login` or HF_TOKEN"
        )
    if status == 404:
        return f"the hub answers 404: no such model; check {page}"
    return f"the hub answers {status}; try again later"


def _reason(error: BaseException) -> str:
    """The message of the first error of a chain: those that wrap it are long."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__

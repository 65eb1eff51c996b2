"""A store in S3, or any server with its API, through boto3 with the usual AWS_* variables."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinymusician.artifacts.atomic import atomic_write
from tinymusician.artifacts.store import DAY, StoreEntry, check_key
from tinymusician.errors import AccessDeniedError, NotFoundError, StoreError, TransientStoreError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from boto3.s3.transfer import TransferConfig
    from boto3.session import Session

_CHUNK = 1 << 16
_MIB = 1 << 20
PART_BYTES = 64 * _MIB
MAX_PARTS = 1000
"""The most parts of an object that every server accepts: Swift's limit; AWS allows 10,000."""
_FILE_PARTS, _MEMORY_PARTS = 8, 3
"""Parts that are transferred at the same time; those from memory are copied."""
_MISSING = {"404", "NoSuchKey", "NotFound"}
_KINDS_BY_CODE = {
    "401": "credentials",
    "403": "permission",
    "AccessDenied": "permission",
    "InvalidAccessKeyId": "credentials",
    "SignatureDoesNotMatch": "signature",
    "RequestTimeTooSkewed": "clock",
    "ExpiredToken": "expired",
    "InvalidToken": "expired",
    "TokenRefreshRequired": "expired",
    "AuthorizationHeaderMalformed": "region",
    "PermanentRedirect": "region",
    "NoSuchBucket": "bucket",
    "SlowDown": "load",
}
_LATER = {408, 425, 429, 500, 502, 503, 504}
_ADVICE = {
    "credentials": "the server refused the credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "permission": "the server denies access, as it also does for what does not exist if the credentials lack "
    "s3:ListBucket; check AWS_ACCESS_KEY_ID, and allow s3:ListBucket and s3:GetObject",
    "signature": "the signature does not match; check AWS_SECRET_ACCESS_KEY and the region, and that no proxy changes "
    "requests",
    "expired": "the server refuses the session token, which may have expired; log in again, or renew AWS_SESSION_TOKEN",
    "region": "the bucket is in another region; set AWS_REGION to it",
    "clock": "this machine's clock and the server's differ by more than the server allows; set the clock",
    "bucket": "no such bucket; create it first, or change TMCTL_STORE",
    "load": "the server asks for fewer requests (SlowDown); try again later, or with fewer workers",
}
_CREDENTIALS = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
}
_CHECKSUMS = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
"""Other S3 servers refuse the checksums that boto3 sends by default since 1.36."""
_USER_INFORMATION = re.compile(r"://[^/@\s'\"]+@")


class _MemoryFile(io.RawIOBase):
    """A file over memory that is not copied as a whole."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._position = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer)
        part = self._data[self._position : self._position + len(target)]
        target[: len(part)] = part
        self._position += len(part)
        return len(part)


def part_bytes(size: int) -> int:
    """The size of the parts in which a value of `size` bytes is uploaded: whole MiB, at most `MAX_PARTS` parts."""
    return max(PART_BYTES, -(-size // MAX_PARTS // _MIB) * _MIB)


def _transfer_config(size: int, concurrency: int) -> TransferConfig:
    from boto3.s3.transfer import TransferConfig

    part = part_bytes(size)
    config = TransferConfig(multipart_threshold=part, multipart_chunksize=part, max_concurrency=concurrency)
    config.max_in_memory_upload_chunks = concurrency
    return config


class S3Store:
    """Keys under `prefix` in `bucket`. An upload becomes visible when it is complete.

    The addressing style and everything else that the user's AWS profile says are boto3's to follow.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        """Prepare a client, with the credentials that boto3 finds; the store itself is not asked yet.

        Raises:
            StoreError: the profile does not exist, or a credential contains white space.
        """
        import boto3
        from botocore.config import Config

        self._secrets: list[str] = []
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        retries = {"mode": "standard", "total_max_attempts": 4}
        signed = "s3v4"  # newer servers refuse presigned URLs of the older signature version
        with self._translate_errors("connect"):
            session = boto3.session.Session()
            self._secrets = _checked_credentials(session)
            configured = session._session.get_scoped_config()
            checksums = {
                name: value
                for name, value in _CHECKSUMS.items()
                if name not in configured and f"AWS_{name.upper()}" not in os.environ
            }
            config = Config(signature_version=signed, retries=retries, connect_timeout=5, read_timeout=60, **checksums)
            self._client: Any = session.client("s3", config=config)

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._translate_errors("write", key):
            if len(data) <= PART_BYTES:
                self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=bytes(data))
            else:
                options = {"Config": _transfer_config(len(data), _MEMORY_PARTS)}
                self._client.upload_fileobj(_MemoryFile(memoryview(data)), self._bucket, self._key(key), **options)

    def get(self, key: str) -> bytes:
        with self._translate_errors("read", key):
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"].read()
            return body

    def upload(self, path: Path, key: str) -> None:
        with self._translate_errors("write", key):
            options = {"Config": _transfer_config(path.stat().st_size, _FILE_PARTS)}
            self._client.upload_file(str(path), self._bucket, self._key(key), **options)

    def download(self, key: str, path: Path) -> None:
        with self._translate_errors("read", key), atomic_write(path) as draft:
            options = {"Config": _transfer_config(PART_BYTES, _FILE_PARTS)}
            self._client.download_file(self._bucket, self._key(key), str(draft), **options)

    @contextlib.contextmanager
    def stream(self, key: str, start: int, tag: str) -> Iterator[tuple[int, str, Iterator[bytes]]]:
        """A value from `start` on if it has this ETag (or `tag` is empty), as (offset, ETag, chunks).

        Leaving it closes the connection, however much of the value was read.
        """
        target = {"Bucket": self._bucket, "Key": self._key(key)}
        with self._translate_errors("read", key):
            head = self._head(target)
            offset = start if tag in ("", head["ETag"]) and start < head["ContentLength"] else 0
            range_header = {"Range": f"bytes={offset}-"} if offset else {}
            body = self._client.get_object(**target, IfMatch=head["ETag"], **range_header)["Body"]
        with contextlib.closing(body):
            yield offset, head["ETag"], self._chunks(body, key)

    def _head(self, target: dict[str, str]) -> Any:
        """The headers of a value. A HEAD's error has no text: a GET says whether the key or the bucket is missing."""
        from botocore.exceptions import ClientError

        try:
            return self._client.head_object(**target)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _MISSING:
                raise
            return self._client.get_object(**target)

    def _chunks(self, body: Any, key: str) -> Iterator[bytes]:
        with self._translate_errors("read", key):
            yield from body.iter_chunks(_CHUNK)

    def presigned(self, key: str, seconds: int) -> str:
        """A URL with which anyone can read a key for this number of seconds."""
        with self._translate_errors("sign", key):
            target = {"Bucket": self._bucket, "Key": self._key(key)}
            url: str = self._client.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds)
            return url

    def exists(self, key: str) -> bool:
        try:
            with self._translate_errors("read", key):
                self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[StoreEntry]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with self._translate_errors("list", prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    key, modified = item["Key"].removeprefix(self._prefix), item["LastModified"].timestamp()
                    yield StoreEntry(key, item["Size"], modified)

    def delete(self, key: str) -> None:
        with self._translate_errors("delete", key), contextlib.suppress(NotFoundError):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def sweep(self, age: float = DAY) -> None:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix)
        with self._translate_errors("sweep"):
            for page in pages:
                for upload in page.get("Uploads", ()):
                    if (datetime.now(UTC) - upload["Initiated"]).total_seconds() > age:
                        upload_id = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                        self._client.abort_multipart_upload(Bucket=self._bucket, **upload_id)

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextlib.contextmanager
    def _translate_errors(self, verb: str, key: str = "") -> Iterator[None]:
        """Raise boto3's errors as one line that says what to do, without credentials in it."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            EndpointConnectionError,
            NoCredentialsError,
            ProfileNotFound,
            ProxyConnectionError,
        )

        where = f"store s3://{self._bucket}: cannot {verb} {key!r}" if key else f"store s3://{self._bucket}"
        try:
            yield
        except NoCredentialsError as error:
            raise StoreError(f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except ProfileNotFound as error:
            raise StoreError(f"{where}: {self._safe(error)}; check AWS_PROFILE") from error
        except ProxyConnectionError as error:
            raise TransientStoreError(
                f"{where}: {self._safe(error)}; check HTTPS_PROXY and HTTP_PROXY, or name the server in NO_PROXY"
            ) from error
        except EndpointConnectionError as error:
            raise TransientStoreError(
                f"{where}: no server responds there; check AWS_ENDPOINT_URL ({self._safe(error)})"
            ) from error
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise NotFoundError(f"store s3://{self._bucket}: nothing under {key!r}") from error
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            kind = AccessDeniedError if status == 403 else TransientStoreError if status in _LATER else StoreError
            raise kind(f"{where}: {_ADVICE.get(_KINDS_BY_CODE.get(code, ''), self._safe(error))}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise TransientStoreError(f"{where}: {self._safe(error)}") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{where}: {self._safe(error)}") from error

    def _safe(self, error: Exception) -> str:
        """An error's message without credentials: not those of the store, nor of a proxy's address."""
        text = _USER_INFORMATION.sub("://…@", str(error))
        for secret in self._secrets:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "…", text)
        return text


def _checked_credentials(session: Session) -> list[str]:
    """The credentials of a session; none if it has none.

    Raises:
        StoreError: one contains white space, which no server accepts and some errors would show.
    """
    credentials = session.get_credentials()
    if credentials is None:
        return []
    values = credentials.get_frozen_credentials()._asdict()
    for field, variable in _CREDENTIALS.items():
        value = values.get(field) or ""
        if re.search(r"\s", value):
            where = variable if variable in os.environ else f"{variable.lower()} in your AWS profile"
            raise StoreError(f"{where}: contains white space; remove it")
    return [values[field] for field in _CREDENTIALS if values.get(field)]

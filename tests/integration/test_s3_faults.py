"""An S3 store that denies access, is unreachable or breaks off: one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from tests.s3_server import S3Server, free_port
from tinymusician.artifacts.s3 import PART_BYTES, S3Store
from tinymusician.errors import NotFoundError, StoreError

pytestmark = pytest.mark.slow


def test_wrong_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3.client("s3").create_bucket(Bucket="faults")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="the signature does not match; check AWS_SECRET_ACCESS_KEY") as caught:
        S3Store("faults").put("key", b"value")
    assert "\n" not in str(caught.value)


def test_no_such_bucket(s3: S3Server) -> None:
    with pytest.raises(StoreError, match="no such bucket") as caught:
        S3Store("never-created").put("key", b"value")
    assert not isinstance(caught.value, NotFoundError)


def test_no_address_responds(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match="no server responds there; check AWS_ENDPOINT_URL"):
        S3Store("faults").get("key")


def test_drafts_of_killed_writers_are_swept(s3_store: S3Store) -> None:
    client, bucket = s3_store._client, s3_store._bucket
    client.create_multipart_upload(Bucket=bucket, Key=s3_store._key("checkpoint"))
    s3_store.sweep()
    assert len(client.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1, "its writer may be at work"
    s3_store.sweep(age=-3600)
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_an_interrupted_upload_leaves_nothing(
    s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second part of a multipart upload fails: the key does not appear, and no parts are left."""
    path = tmp_path / "big"
    path.write_bytes(b"x" * (PART_BYTES + (1 << 20)))
    client = s3_store._client
    upload_part, parts = client.upload_part, []

    def cut_off(**arguments: object) -> object:
        parts.append(arguments["PartNumber"])
        if len(parts) > 1:
            raise OSError("connection lost")
        return upload_part(**arguments)

    monkeypatch.setattr(client, "upload_part", cut_off)
    with pytest.raises(StoreError, match="cannot write 'big'"):
        s3_store.upload(path, "big")
    assert not s3_store.exists("big")
    assert not client.list_multipart_uploads(Bucket=s3_store._bucket).get("Uploads")
    monkeypatch.undo()
    assert list(s3_store.list("")) == []


def test_large_files_go_in_parts_and_come_back(s3_store: S3Store, tmp_path: Path) -> None:
    content = bytes(range(256)) * (PART_BYTES // 256 + 1)
    (tmp_path / "in").write_bytes(content)
    s3_store.upload(tmp_path / "in", "big")
    s3_store.download("big", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content

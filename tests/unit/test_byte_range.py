"""The header `Range`: examples of RFC 9110, 14.1.2 and 14.2."""

from __future__ import annotations

import pytest

from serve.byte_range import content_range, parse_range


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-499", (0, 500)),
        ("bytes=500-999", (500, 1000)),
        ("bytes=-500", (9500, 10000)),
        ("bytes=9500-", (9500, 10000)),
        ("bytes=0-0", (0, 1)),
        ("Bytes=9500-20000", (9500, 10000)),
        ("bytes=-20000", (0, 10000)),
        ("bytes=10000-", None),
        ("bytes=-0", None),
    ],
)
def test_one_range(header: str, span: tuple[int, int] | None) -> None:
    part = parse_range(header)
    assert part is not None
    assert part.within(10000) == span


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=", "bytes=a-b", "bytes=5-3", "bytes=0-1,5-6", "items=0-5", "bytes=--1"]
)
def test_what_is_ignored(header: str | None) -> None:
    assert parse_range(header) is None


def test_an_empty_file_has_no_range() -> None:
    part = parse_range("bytes=0-")
    assert part is not None
    assert part.within(0) is None
    assert content_range(0, 500, 10000) == "bytes 0-499/10000"

"""`/ready`, which needs no key, costs an engine one request a second, whatever becomes of that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import requests

from serve.generation_task import EngineDeadError
from serve.schemas import ModelInfo
from tests.endpoint import Endpoint, endpoint


@pytest.fixture
def here(bundle: Path) -> Iterator[Endpoint]:
    with endpoint(model=str(bundle), threads=1) as result:
        yield result


def test_probes_ask_an_engine_once_a_second(here: Endpoint) -> None:
    """Sixty at once, as a load balancer or a stranger sends them: nobody needs a key for /ready."""
    before, began = here.engines.described, time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: requests.get(f"{here.url}/ready", timeout=30).status_code, range(60)))
    assert set(answers) == {200}
    assert here.engines.described - before <= 1 + time.monotonic() - began


@pytest.mark.parametrize("fault", ["hangs", "is lost"])
def test_probes_of_an_engine_that_does_not_answer(here: Endpoint, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty probes are one request for it, and none waits for those before."""
    calls = []

    async def about() -> ModelInfo:
        calls.append(time.monotonic())
        if fault == "hangs":
            await asyncio.sleep(60)
        raise EngineDeadError

    monkeypatch.setattr(here.engines, "about", about)
    monkeypatch.setattr("serve.ingress._READY_SECONDS", 0.5)
    monkeypatch.setattr("serve.ingress._STALE_SECONDS", -1.0)
    with ThreadPoolExecutor(60) as pool:
        codes = list(pool.map(lambda _: requests.get(f"{here.url}/ready", timeout=30).status_code, range(60)))
    assert set(codes) == {503}
    assert all(later - earlier >= 1 for earlier, later in pairwise(calls))
    assert len(calls) <= 3

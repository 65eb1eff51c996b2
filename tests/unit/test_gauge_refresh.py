"""Gauges that are set again for as long as they are true."""

from __future__ import annotations

import threading

import pytest

from serve.gauge_refresh import GaugeRefresh
from tests.ray_cluster import wait_for
from tinymusician.errors import EngineError


def test_an_update_is_repeated_until_it_is_closed() -> None:
    count, is_third = 0, threading.Event()

    def update() -> None:
        nonlocal count
        count += 1
        if count == 3:
            is_third.set()

    refresh = GaugeRefresh(update, seconds=0.001)
    assert is_third.wait(60)
    refresh.close()
    last = count
    threading.Event().wait(0.1)
    assert count == last


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_update_that_fails_is_not_healthy() -> None:
    refresh = GaugeRefresh(lambda: next(iter(())), seconds=0.001)
    wait_for(lambda: is_ill(refresh), 30)
    refresh.close()


def is_ill(refresh: GaugeRefresh) -> bool:
    try:
        refresh.check_health()
    except EngineError:
        return True
    return False

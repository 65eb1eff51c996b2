"""Gauges that are set again for as long as they are true."""

from __future__ import annotations

import threading

from serve.gauge_refresh import GaugeRefresh


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

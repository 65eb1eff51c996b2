"""Tunes for training: how often tunes in minor keys are among them."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from tinymusician.house_band.tunes import Tune, balance_modes


def test_modes_are_about_as_frequent() -> None:
    major = [_tune(f"major {number}", "major") for number in range(17)]
    minor = [_tune(f"minor {number}", "minor") for number in range(3)]
    balanced = balance_modes([*major, *minor])
    assert Counter(each.mode for each in balanced) == {"major": 17, "minor": 18}
    assert set(Counter(each.title for each in balanced if each.mode == "minor").values()) == {6}
    assert balance_modes(major) == major
    assert balance_modes(minor) == minor


def _tune(title: str, mode: Literal["major", "minor"]) -> Tune:
    return Tune(title, "ryan", "reel", 0, mode, "4/4", ((0.0, 1.0, 60),))

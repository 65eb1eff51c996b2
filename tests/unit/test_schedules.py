"""α, τ and the learning rate against values by hand."""

from __future__ import annotations

import itertools

import pytest

from tinymusician.distill.schedules import stage, temperature
from tinymusician.training.lr_schedule import LAST_SHARE, learning_rate


def test_paper_switch_is_a_hard_step() -> None:
    assert [stage(step, 3) for step in range(6)] == [1, 1, 1, 0, 0, 0]


def test_a_ramp_between() -> None:
    assert [stage(step, 2, 3) for step in range(7)] == [1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_temperature_decays_linearly_and_stays() -> None:
    assert [temperature(step, 4, 3.0, 1.0) for step in range(6)] == [3.0, 2.5, 2.0, 1.5, 1.0, 1.0]
    assert temperature(0, 0, 3.0, 1.0) == 1.0


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 1.0, 10, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx((1 + LAST_SHARE) / 2)
    assert rates[110] == pytest.approx(LAST_SHARE)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))

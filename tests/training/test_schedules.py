"""Schedules against their formulas in plain Python."""

import math

import pytest

from big_mm.spec import UserError
from big_mm.training import schedules

STEPS = 100


def values(schedule):
    return [float(schedule(step, STEPS)) for step in range(STEPS)]


def test_warmup_cosine():
    found = values(schedules.WarmupCosine(warmup=10, final=0.1))
    for step, value in enumerate(found):
        progress = max(step - 10, 0) / 90
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        assert value == pytest.approx(expected * min(1, (step + 1) / 10), abs=1e-6)
    assert found[9] == found[10] == 1.0 and found[0] == pytest.approx(0.1)


def test_rsqrt():
    found = values(schedules.Rsqrt(warmup=10, cooldown=20, timescale=16))
    for step, value in enumerate(found):
        expected = min(1, (step + 1) / 10) * math.sqrt(16 / (16 + max(step - 10, 0)))
        assert value == pytest.approx(expected * min(1, (STEPS - step) / 20), abs=1e-6)
    assert found[79] > found[99] > 0


def test_rsqrt_before_its_cooldown_does_not_depend_on_the_length():
    schedule = schedules.Rsqrt(warmup=10, cooldown=20)
    assert [float(schedule(step, 1000)) for step in range(80)] == values(schedule)[:80]


def test_constant():
    assert values(schedules.Constant()) == [1.0] * STEPS
    found = values(schedules.Constant(warmup=2, cooldown=4))
    assert found[:3] == [0.5, 1.0, 1.0] and found[-5:] == [1.0, 1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.WarmupCosine(warmup=101),
        schedules.Rsqrt(warmup=60, cooldown=50),
        schedules.Constant(warmup=1, cooldown=100),
    ],
)
def test_phases_longer_than_the_run_are_an_error(schedule):
    with pytest.raises(UserError, match="needs 1[01][01] steps, the run has 100"):
        schedule(0, STEPS)

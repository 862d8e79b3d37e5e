"""Schedules against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.core.errors import ConfigError
from chiasm.train.schedule import factor, rates
from chiasm.train.stage import Stage

N, WARM, FLOOR = 100, 10, 0.1


def stage(schedule, **changes):
    settings = {"warmup_ratio": 0.1, "min_lr_ratio": FLOOR} | changes
    return Stage("s", N, {"a": 2e-3, "b": 5e-4}, schedule=schedule, **settings)


def fall(shape):
    return lambda t: FLOOR + (1 - FLOOR) * shape((t - WARM) / (N - WARM))


FORMULAS = {
    "constant": lambda t: 1.0,
    "linear": fall(lambda u: 1 - u),
    "cosine": fall(lambda u: 0.5 * (1 + math.cos(math.pi * u))),
    "exponential": lambda t: math.exp(math.log(FLOOR) * (t - WARM) / (N - WARM)),
    "inverse_sqrt": lambda t: max(FLOOR, ((t + 1) / (WARM + 1)) ** -0.5),
    "wsd": lambda t: 1.0 if t < 80 else FLOOR + (1 - FLOOR) * (N - t) / 20,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_step_equals_the_formula(name):
    for t in range(N):
        expected = (t + 1) / (WARM + 1) if t < WARM else FORMULAS[name](t)
        assert factor(stage(name), t) == pytest.approx(expected, abs=1e-12), t


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(FORMULAS)), st.integers(1, 300), st.floats(0, 0.5), st.floats(0.01, 1))
def test_it_rises_then_never_rises_again_and_stays_within(name, steps, warmup, floor):
    made = Stage(
        "s", steps, warmup_ratio=warmup, schedule=name, min_lr_ratio=floor, decay_ratio=0.3
    )
    curve = np.array([factor(made, t) for t in range(steps)])
    warm = round(warmup * steps)
    assert (np.diff(curve[: warm + 1]) > 0).all()
    assert (np.diff(curve[warm:]) <= 1e-12).all()
    assert curve.max() <= 1
    assert curve[warm:].min(initial=1) >= floor - 1e-12
    if warm < steps and name != "wsd":
        assert curve[warm] == 1


def test_inverse_sqrt_is_the_transformers_up_to_its_peak():
    """min(step^-0.5, step · warm^-1.5), steps counted from 1 (1706.03762, equation 3)."""
    made = stage("inverse_sqrt", min_lr_ratio=0.0)
    curve = np.array([factor(made, t) for t in range(N)])
    step, warm = np.arange(1, N + 1), WARM + 1
    paper = np.minimum(step**-0.5, step * warm**-1.5)
    np.testing.assert_allclose(curve, paper / paper.max())


def test_rates_are_peak_times_factor_for_each_group():
    made = stage("cosine")
    found = rates(made)
    assert list(found) == ["a", "b"]
    assert found["a"] == pytest.approx([2e-3 * factor(made, t) for t in range(N)])
    assert found["b"] == pytest.approx([x / 4 for x in found["a"]])


def test_impossible_schedules_are_refused():
    with pytest.raises(ConfigError, match="set min_lr_ratio"):
        stage("exponential", min_lr_ratio=0.0)
    with pytest.raises(ConfigError, match="cannot exceed 1"):
        stage("wsd", warmup_ratio=0.5, decay_ratio=0.6)

from __future__ import annotations

import math

import pytest

from kd_lightning.callbacks import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    PiecewiseConstant,
    SigmoidRampUp,
    TemperatureSchedule,
    TermWeightSchedule,
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(2.5), [2.5, 2.5, 2.5, 2.5, 2.5, 2.5]),
        (Linear(0.0, 1.0, 4), [0, 0.25, 0.5, 0.75, 1, 1]),
        (Linear(8.0, 2.0, 3), [8, 6, 4, 2, 2, 2]),
        (Cosine(0.0, 2.0, 4), [0, 1 - math.sqrt(0.5), 1, 1 + math.sqrt(0.5), 2, 2]),
        (Exponential(1.0, 81.0, 4), [1, 3, 9, 27, 81, 81]),
        (PiecewiseConstant({0: 4.0, 3: 1.0, 5: 7.0}), [4, 4, 4, 1, 1, 7]),
        (SigmoidRampUp(3.0, 5), [3 * math.exp(-5 * (1 - t / 5) ** 2) for t in range(6)]),
    ],
)
def test_the_values_are_those_of_the_formula(schedule, expected):
    assert [schedule(t) for t in range(6)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [Linear, Cosine, Exponential])
def test_a_duration_may_be_a_single_step(kind):
    assert [kind(8.0, 2.0, 1)(t) for t in range(3)] == pytest.approx([8, 2, 2])


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(-1.0),
        Linear(0.1, 0.3, 7),
        Cosine(0.3, 0.1, 7),
        Exponential(1e-300, 1e300, 7),
        PiecewiseConstant({5: 2.0, 0: -3.0}),
        SigmoidRampUp(-2.0, 7),
    ],
)
def test_all_values_lie_between_the_extremes_and_the_ends_are_exact(schedule):
    values = [schedule(t) for t in range(20)]
    low, high = min(schedule.extremes()), max(schedule.extremes())
    assert min(values) >= low - 1e-12 * abs(low)
    assert max(values) <= high + 1e-12 * abs(high)
    assert {values[0], values[-1]} == {low, high}
    assert len(set(values[7:])) == 1


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Constant(math.nan), r"Constant\(value=nan\).*not finite"),
        (lambda: Linear(1.0, math.inf, 3), "not finite"),
        (lambda: Cosine(-math.inf, 1.0, 3), "not finite"),
        (lambda: PiecewiseConstant({0: 1.0, 4: math.nan}), "not finite"),
        (lambda: SigmoidRampUp(math.inf, 3), "not finite"),
        (lambda: Linear(1.0, 2.0, 0), "duration=0 of Linear"),
        (lambda: SigmoidRampUp(1.0, -3), "duration=-3 of SigmoidRampUp"),
        (lambda: Exponential(0.0, 1.0, 3), "not above 0"),
        (lambda: Exponential(1.0, -1.0, 3), "not above 0"),
        (lambda: PiecewiseConstant({}), "boundary must be 0"),
        (lambda: PiecewiseConstant({1: 1.0}), "boundary must be 0"),
        (lambda: PiecewiseConstant({-1: 1.0, 0: 2.0}), "boundary must be 0"),
        (
            lambda: TemperatureSchedule(Linear(4.0, 0.0, 3)),
            r"Linear\(.*temperature=0.0 must be a finite number above 0",
        ),
        (lambda: TemperatureSchedule(PiecewiseConstant({0: 4.0, 9: -1.0})), "temperature=-1.0"),
        (lambda: TemperatureSchedule(Constant(-4.0)), "temperature=-4.0"),
        (lambda: TermWeightSchedule("kd", Constant(1.0), unit="steps"), "unit='steps'"),  # pyright: ignore
    ],
)
def test_invalid_schedules_raise_at_construction(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


def test_a_configuration_names_a_schedule_by_its_class():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TemperatureSchedule, "callback")
    schedule = {"class_path": "PiecewiseConstant", "init_args": {"values": {0: 8, 100: 4.0}}}
    built = parser.instantiate(parser.parse_object({"callback": {"schedule": schedule, "unit": "epoch"}}))
    assert built.callback.schedule == PiecewiseConstant({0: 8.0, 100: 4.0})

"""`make bench` times every loss, and both sides compute the same formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.losses import ENTRIES, TOLERANCE, Entry, disagreement, listed, measure
from benchmarks.zoo import difference
from kd_lightning import losses


def is_large(entry: Entry) -> bool:
    """Return True if its inputs are so many numbers that their gradients take a hundred MiB and more."""
    return sum(math.prod(shape) for side in (entry.student, entry.teacher) for shape in listed(side)) > 10**6


by_name = pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, marks=pytest.mark.slow if is_large(entry) else ()) for entry in ENTRIES],
    ids=[f"{entry.name}-{entry.shapes}".replace(" ", "") for entry in ENTRIES],
)


def the(name: str, shapes: str):
    (entry,) = [entry for entry in ENTRIES if entry.name == name and entry.shapes == shapes]
    return entry


def test_every_loss_has_a_plain_form():
    by_the_input = {"GradientAttentionLoss", "JacobianLoss"}  # their time is that of the networks' second derivatives
    missing = {n for n in losses.__all__ if n.endswith("Loss")} - by_the_input - {entry.name for entry in ENTRIES}
    assert not missing, "a loss's test file has its plain torch form in PLAIN, as tests/losses/plain.py explains"


@by_name
def test_the_plain_form_has_the_same_value_and_gradients(entry):
    assert disagreement(entry, torch.float64) < 1e-6  # what keeps them from dividing by zero is not the same


@pytest.mark.parametrize("form", [lambda m, s, t, y: 1.001 * m(s, t, y), lambda m, s, t, y: m(s, 1.001 * t, y)])
def test_a_different_formula_is_found(form):
    assert disagreement(replace(the("KDLoss", "10"), form=form)) > TOLERANCE


def test_four_times_the_work_takes_longer():
    entry = the("FeatureMSELoss", "128x6x6")
    slow = replace(entry, form=lambda *given: (sum(entry.form(*given) for _ in range(4))) / 4)
    assert measure(slow, rounds=5, seconds=0.0).ratio < 0.7 * measure(entry, rounds=5, seconds=0.0).ratio


def test_a_difference_of_one_seed_has_no_interval():
    assert difference([53.5], [9.75]) == "+43.75"
    assert difference([53.5, 55.5], [9.75, 10.75]) == "**+44.25 [+37.90, +50.60]**"
    assert difference([53.5], []) == ""

from __future__ import annotations

import pytest
import torch

from kd_lightning.core.stateless_random import splitmix64, stateless_randint, stateless_uniform


def test_numbers_of_a_row_depend_on_the_row_alone():
    whole = stateless_uniform(torch.arange(100_000), 3, salt=1)
    some = torch.tensor([99_999, 5, 7])
    assert torch.equal(stateless_uniform(some, 3, salt=1), whole[some])
    assert whole.min() >= 0
    assert whole.max() < 1
    assert (whole.mean(0) - 0.5).abs().max() < 0.005
    assert (whole.var(0) - 1 / 12).abs().max() < 0.002
    other = stateless_uniform(torch.arange(100_000), 3, salt=2)
    mixed = torch.cat((whole, other), dim=1).T
    assert (torch.corrcoef(mixed) - torch.eye(6)).abs().max() < 0.02  # neither places nor salts go together
    assert (torch.corrcoef(torch.stack((whole[1:, 0], whole[:-1, 0])))[0, 1]).abs() < 0.02  # nor do neighbours
    assert stateless_randint(torch.arange(100_000), 7, salt=3).bincount().tolist() == pytest.approx(
        [100_000 / 7] * 7, rel=0.05
    )


def test_draws_are_splitmix():
    """Written out in Python's whole numbers."""

    def expected(index: int, place: int, salt: int) -> float:
        word = 2**64 - 1
        state = (index * 1_000_003 + salt * 7_919 + place * 104_729) * 0x9E3779B97F4A7C15 & word
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & word
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & word
        return ((state ^ (state >> 31)) >> 40) / 2**24

    drawn = stateless_uniform(torch.tensor([0, 1, 59_999]), 2, salt=5).tolist()
    assert drawn == [[expected(index, place, 5) for place in (1, 2)] for index in (0, 1, 59_999)]


def test_splitmix_is_that_of_unsigned_numbers():
    word = 2**64 - 1

    def expected(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & word
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & word
        return state ^ (state >> 31)

    states = [0, 1, -1, 2**62 + 12345, -(2**63), 2**63 - 1]
    assert [value % 2**64 for value in splitmix64(torch.tensor(states)).tolist()] == [
        expected(s & word) for s in states
    ]

"""Two processes compute what one would."""

from __future__ import annotations

import pytest
import torch

from tests import found, toys, two_processes
from tests.ranks import run_two, two_processes as together

pytestmark = together
CHOSEN = found.one_of_each_folder()
OTHERS = [name for name in found.cases() if name not in CHOSEN]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks computed; see `two_processes`."""
    out = tmp_path_factory.mktemp("two_processes")
    run_two("tests.two_processes", out)
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The gradients, runs and resumes of two ranks, of all kinds that `ranks` leaves out."""
    out = tmp_path_factory.mktemp("others")
    run_two("tests.two_processes", out, *OTHERS)
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [*CHOSEN, "compares"])
def test_two_ranks_have_the_gradient_of_one_process(name, ranks, tmp_path):
    check_gradients(name, ranks, tmp_path)


@pytest.mark.slow  # a minute of runs
@pytest.mark.parametrize("name", OTHERS)
def test_two_ranks_of_every_other_kind_do_too(name, others, tmp_path):
    check_gradients(name, others, tmp_path)


def check_gradients(name, ranks, folder):
    one = two_processes.gradients(folder, 1, [name])[name]
    whole = torch.cat([value.flatten() for value in one.values()])
    assert whole.any()
    for rank in ranks:
        assert rank["gradients"][name].keys() == one.keys()
        shared = torch.cat([value.flatten() for value in rank["gradients"][name].values()])
        assert ((shared - whole).norm() / whole.norm()).item() <= 1e-6


@pytest.mark.parametrize("name", two_processes.comparing())
def test_a_loss_that_compares_samples_has_the_gradient_of_one_process_and_stores_the_same(name, ranks):
    one = two_processes.compared(name, 1)
    gradients = [key for key in one if not key.startswith("stored ")]
    whole = torch.cat([one[key].flatten() for key in gradients])
    assert whole.any()
    for rank in ranks:
        assert rank["losses"][name].keys() == one.keys()
        shared = torch.cat([rank["losses"][name][key].flatten() for key in gradients])
        assert ((shared - whole).norm() / whole.norm()).item() <= 1e-6
        for key in one.keys() - set(gradients):
            torch.testing.assert_close(rank["losses"][name][key], one[key], rtol=1e-6, atol=1e-6)
            assert torch.equal(rank["losses"][name][key], ranks[0]["losses"][name][key])


def test_metrics_are_exact_when_the_ranks_shares_are_uneven(ranks, tmp_path):
    one = two_processes.metrics(tmp_path, 1)
    for rank in ranks:
        assert rank["metrics"] == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("name", CHOSEN)
def test_both_ranks_end_with_the_same_weights_and_resume_is_bit_exact(name, ranks):
    check_resumes(*(rank["resumed"][name] for rank in ranks))


@pytest.mark.slow  # a minute of runs
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_kind_does_too(name, others):
    check_resumes(*(rank["resumed"][name] for rank in others))


def check_resumes(saved, others):
    first, *again = saved  # rank 0 is the one that is saved
    other = others[0]
    parameters = {key for key in first if "running" not in key}  # BatchNorm's own statistics stay each rank's
    assert toys.same({key: first[key] for key in parameters}, {key: other[key] for key in parameters})
    assert [toys.same(weights, first) for weights in again] == [True] * 2


def test_ranks_validate_with_the_statistics_that_are_saved(ranks):
    assert ranks[0]["statistics"]
    assert toys.same(ranks[0]["statistics"], ranks[1]["statistics"])


def test_cached_outputs_teach_as_the_live_teacher_does(ranks):
    for rank in ranks:
        for name, value in rank["live"].items():
            torch.testing.assert_close(rank["cached"][name], value, rtol=1e-5, atol=1e-6)

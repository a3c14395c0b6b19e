"""Wrong names, and the nearest right ones."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

from kd_lightning import UsageError
from kd_lightning.core.lookup import choose, did_you_mean, find_network, nearest, network_names, suggestion

LAYERS = [f"conv.{number}" for number in range(20)] + ["classifier"]


def test_the_nearest_names_come_first_and_at_most_three():
    assert nearest("conv.1", LAYERS) == "conv.1, conv.19, conv.18"
    assert nearest("clasifier", LAYERS).startswith("classifier")


def test_without_a_similar_name_the_first_are_listed():
    assert nearest("zzz", LAYERS) == ", ".join(LAYERS[:8])
    assert nearest("zzz", LAYERS, most=2) == "conv.0, conv.1"
    assert nearest("zzz", []) == ""


@pytest.mark.parametrize(
    ("wrong", "names", "end"),
    [
        ("wieght", ["weight", "loss"], "; did you mean 'weight'?"),
        ("zzz", ["weight", "loss", "loss"], "; there are 'loss', 'weight'"),
        ("zzz", ["loss"], "; there is 'loss'"),
        ("zzz", [], ""),
        ("zzz", LAYERS, ""),  # too many to list
    ],
)
def test_a_suggestion_ends_a_message(wrong, names, end):
    assert suggestion(wrong, names) == end
    assert did_you_mean(wrong, names) == (end if "did you mean" in end else "")


def test_a_name_is_chosen_or_refused_in_one_line():
    assert choose("kd", ["task", "kd"], "there is no term {name}") == "kd"
    with pytest.raises(UsageError, match="there is no term 'kdd'; the nearest names are kd") as found:
        choose("kdd", iter(["task", "kd"]), "there is no term {name}")
    assert "\n" not in str(found.value)


def test_a_network_is_found_and_one_outside_the_tree_is_named():
    module = nn.Sequential(nn.Linear(2, 2))
    vars(module)["teacher"] = nn.Sequential(nn.Linear(3, 3))
    assert find_network(module, "0", "to compile") is module[0]
    assert find_network(module, "", "to compile") is module
    assert network_names(module) == ["0", "teacher", "teacher.0"]
    with pytest.raises(UsageError, match=r"Sequential has no network 'techer\.0' to compile; .* teacher\.0"):
        find_network(module, "techer.0", "to compile")


def test_names_are_looked_up_without_torch():
    program = "import sys, kd_lightning.core.lookup; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0

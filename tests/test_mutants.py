"""The tool that changes expressions to try the tests, on a small project of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.mutants.changes import mutants

SOURCE = '''
from functools import wraps

LIMIT = 3  # outside of functions


def decorated(function):
    @wraps(function)
    def call(*arguments):
        return function(*arguments)

    return call


def area(width: float = 1.0, height: float = 2.0) -> float:
    """A text with 1 + 1."""
    if width < 0:
        raise ValueError(f"width={width} must be at least {0 + 0}")
    return width * height


class Shape:
    @property
    def corners(self):
        return 4

    @staticmethod
    @decorated
    def doubled(value):
        return value - -value


def unused():
    return 1
'''
TESTS = """
import pytest

from shapes import Shape, area


def test_area():
    assert area(2.0, 3.0) == 6.0
    with pytest.raises(ValueError):
        area(-1.0)


def test_shape():
    assert Shape().corners == 4
    assert Shape.doubled(3) == 6
"""
RUN = """
import sys
from pathlib import Path

import pytest

from benchmarks.mutants.changes import mutants
from benchmarks.mutants.run import Mutations

root = Path(sys.argv[1])
tell = lambda mutant, outcome: print(f"{mutant}: {outcome}", file=sys.stderr)
plugin = Mutations([*mutants(Path("shapes.py"), root)], root, 2, tell)
pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(root), str(root)], plugins=[plugin])
"""


def test_each_expression_is_changed_by_itself(tmp_path: Path):
    (tmp_path / "shapes.py").write_text(SOURCE)
    made = [(mutant.function, mutant.change) for mutant in mutants(Path("shapes.py"), tmp_path)]
    assert made == [
        ("area", "width < 0 -> width <= 0"),
        ("area", "0 -> 1"),
        ("area", "width * height -> width / height"),
        ("Shape.corners", "4 -> 5"),
        ("Shape.doubled", "value - -value -> value + -value"),
        ("Shape.doubled", "-value -> value"),
        ("unused", "1 -> 2"),
    ]


def test_a_mutant_meets_the_tests_that_call_its_function(tmp_path: Path):
    (tmp_path / "shapes.py").write_text(SOURCE)
    (tmp_path / "test_shapes.py").write_text(TESTS)
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True
    )
    outcomes = sorted(line.removeprefix("shapes.py:") for line in run.stderr.splitlines())
    assert outcomes == [
        "17 area: 0 -> 1: survived",
        "17 area: width < 0 -> width <= 0: survived",
        "19 area: width * height -> width / height: killed",
        "25 Shape.corners: 4 -> 5: killed",
        "30 Shape.doubled: -value -> value: killed",
        "30 Shape.doubled: value - -value -> value + -value: killed",
        "34 unused: 1 -> 2: not called",
    ]

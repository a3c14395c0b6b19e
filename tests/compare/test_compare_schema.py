"""The schema of compare files, and the grids that they may have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from small_plan import new_plan, write

from kd_lightning import UsageError
from kd_lightning.__main__ import main
from kd_lightning.cli.configs import SHIPPED
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.schema import json_schema

PAGE = Path(__file__).parents[2] / "docs/compare.md"
TEMPERATURE = "model.init_args.terms.kd.loss.init_args.temperature"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("compare/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_keeps_to_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


@pytest.mark.parametrize(
    "change",
    [{"groops": {}}, {"groups": []}, {"title": 3}, {"groups": {"a": {"seeds": [0]}}}],
    ids=["unknown", "kind", "text", "required"],
)
def test_the_schema_and_the_command_refuse_the_same(change: dict[str, Any], tmp_path: Path) -> None:
    plan = new_plan() | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plan, json_schema())
    with pytest.raises(UsageError):
        read_plan(write(tmp_path, plan))


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_the_first_example_of_the_page_can_be_run(tmp_path: Path) -> None:
    example = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (tmp_path / "plan.yaml").write_text(example)
    names = [variant.name for variant in read_plan(tmp_path / "plan.yaml").variants]
    assert names[:3] == ["teacher", "alone", "taught-temperature-2.0-lr-0.001"]
    assert len(names) == 2 + 6


def test_a_grid_is_one_variant_for_each_combination(tmp_path: Path) -> None:
    plan = new_plan()
    both = plan["groups"]["digits"]["variants"]["both"]
    both["grid"] = {TEMPERATURE: [2.0, 4.0], "model.init_args.terms.kd.weight": [0.5], "trainer.max_epochs": [1, 2]}
    both["overrides"] = {"trainer": {"max_steps": 7}}
    variants = {variant.name: variant for variant in read_plan(write(tmp_path, plan)).variants}
    assert len(variants) == 2 + 4
    found = variants["both-temperature-4.0-weight-0.5-max_epochs-2"]
    assert found.title == "both terms, temperature 4.0, weight 0.5, max_epochs 2"
    terms = found.config["model"]["init_args"]["terms"]
    assert terms["kd"]["loss"]["init_args"] == {"temperature": 4.0}
    assert terms["task"]["weight"] == 0.5
    assert (found.config["trainer"]["max_epochs"], found.config["trainer"]["max_steps"]) == (2, 7)
    assert found.teacher is variants["teacher"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({TEMPERATURE: 4.0}, "temperature is 4.0 and not a list of values, such as [2, 4]"),
        ({TEMPERATURE: []}, "temperature is [] and not a list of values"),
        ({f"a.{i}": [*range(11)] for i in range(3)}, "1,331 combinations are too many: at most 1,000"),
    ],
)
def test_a_grid_that_cannot_be_costs_one_line(grid: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan = new_plan()
    plan["groups"]["digits"]["variants"]["both"]["grid"] = grid
    with pytest.raises(UsageError) as error:
        read_plan(write(tmp_path, plan))
    assert message in str(error.value)

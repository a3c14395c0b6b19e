from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from small_plan import new_plan, write

from kd_lightning.__main__ import main
from kd_lightning.cli.configs import SHIPPED, merge
from kd_lightning.compare.plan.plan_file import read_plan


@pytest.fixture
def plan() -> dict[str, Any]:
    return new_plan()


def test_overrides_lie_on_top_of_each_other(tmp_path: Path, plan: dict[str, Any]) -> None:
    group = plan["groups"]["digits"]
    plan["overrides"]["data"] = {"init_args": {"train_size": 60, "val_size": 60, "batch_size": 60}}
    group["overrides"] = {"data": {"init_args": {"val_size": 70, "batch_size": 70}}}
    group["variants"]["alone"]["overrides"] = {"data": {"init_args": {"batch_size": 20}}}
    read = read_plan(write(tmp_path, plan))
    [_, alone, both] = read.variants
    assert alone.config["data"]["init_args"] == {
        "batch_size": 20,
        "train_size": 60,
        "val_size": 70,
        "steps_per_epoch": 6,
    }
    assert both.config["data"]["init_args"]["batch_size"] == 70
    assert both.config["model"]["class_path"] == "OfflineDistiller"


def test_later_files_lie_on_earlier_ones(tmp_path: Path, plan: dict[str, Any]) -> None:
    (tmp_path / "part.yaml").write_text("trainer: {max_epochs: 9}\ndata: {init_args: {batch_size: 5}}\n")
    plan["groups"]["digits"]["variants"]["alone"]["config"] = ["alone.yaml", "part.yaml"]
    alone = read_plan(write(tmp_path, plan)).variants[1]
    assert alone.config["data"]["init_args"]["batch_size"] == 5
    assert alone.config["trainer"]["max_epochs"] == 1, "what is set lies on top of all files"


def test_each_configuration_that_no_variant_names_becomes_one(tmp_path: Path, plan: dict[str, Any]) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    (tmp_path / "distilled.yaml").touch()
    write(tmp_path, plan)
    for name in ("one_more", "named", "left", "alone"):
        (folder / f"{name}.yaml").write_text((tmp_path / "distilled.yaml").read_text())
    group = plan["groups"]["digits"]
    group["variants"]["given"] = {"config": "found/named.yaml", "teacher": "teacher"}
    group["for_each"] = {
        "configs": ["found/*.yaml"],
        "without": ["found/left.yaml"],
        "teacher": "teacher",
        "overrides": {"data": {"init_args": {"batch_size": 10}}},
    }
    variants = {variant.name: variant for variant in read_plan(write(tmp_path, plan)).variants}
    assert list(variants) == ["teacher", "alone", "both", "given", "found-alone", "one-more"]
    added = variants["one-more"]
    assert added.title == "one more"
    assert added.teacher is variants["teacher"]
    assert added.baseline is variants["alone"]
    assert added.seeds == (3, 4)
    assert added.config["data"]["init_args"]["batch_size"] == 10
    assert variants["given"].config["data"]["init_args"]["batch_size"] == 16


def test_another_class_drops_the_arguments_of_the_old_one() -> None:
    base = {"loss": {"class_path": "KDLoss", "init_args": {"temperature": 4.0}}, "weight": 1.0}
    changed = merge(base, {"loss": {"class_path": "LogitMSELoss"}})
    assert changed == {"loss": {"class_path": "LogitMSELoss"}, "weight": 1.0}
    assert merge(base, {"loss": {"class_path": "KDLoss", "init_args": {"other": 1}}})["loss"]["init_args"] == {
        "temperature": 4.0,
        "other": 1,
    }
    assert base["loss"]["init_args"] == {"temperature": 4.0}


def test_a_seed_is_the_seed_of_everything_and_teachers_teach_in_turn(tmp_path: Path, plan: dict[str, Any]) -> None:
    plan["groups"]["few"] = {
        "seeds": [0, 1, 2, 3, 4],
        "variants": {"both": {"config": "distilled.yaml", "teacher": "digits/teacher"}},
    }
    runs = read_plan(write(tmp_path, plan)).groups[1].variants[0].runs
    assert [run.name for run in runs] == [f"few/both/seed-{seed}" for seed in range(5)]
    assert [run.teacher and run.teacher.seed for run in runs] == [3, 4, 3, 4, 3]
    assert [run.config["seed_everything"] for run in runs] == [0, 1, 2, 3, 4]
    assert [run.config["data"]["init_args"]["seed"] for run in runs] == [0, 1, 2, 3, 4]
    teacher = runs[1].placed(tmp_path)["model"]["init_args"]["teacher"]["init_args"]
    assert teacher["checkpoint"] == str(tmp_path / "digits/teacher/seed-4/last.ckpt")
    assert "network" in teacher


def test_a_digest_changes_with_what_a_result_depends_on(tmp_path: Path, plan: dict[str, Any]) -> None:
    def digest(teacher: bytes = b"weights", root: Path = tmp_path / "runs") -> str:
        run = read_plan(write(tmp_path, plan)).variants[2].runs[0]
        path = root / "digits/teacher/seed-3/last.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(teacher)
        return run.digest(root)

    before = digest()
    assert digest(root=tmp_path / "elsewhere") == before, "a folder that was moved is finished still"
    assert digest(teacher=b"other weights") != before
    plan["title"] = "another"
    plan["groups"]["digits"]["variants"]["both"]["title"] = "another"
    assert digest() == before
    plan["groups"]["digits"]["overrides"] = {"trainer": {"max_epochs": 2}}
    assert digest() != before


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"seed": [0]}, r"plan.yaml: groups.digits: there is no such key as 'seed'; did you mean 'seeds'"),
    "an old key": ({"set": {}}, r"groups.digits: the key 'set' is now called 'overrides'"),
    "no seeds": ({"seeds": []}, r"groups.digits: seeds is missing or empty"),
    "one seed twice": ({"seeds": [1, 1]}, r"groups.digits: seeds is \[1, 1\]"),
    "a negative seed": ({"seeds": [-1]}, r"seeds is \[-1\]"),
    "seeds are no list": ({"seeds": 3}, r"groups.digits: seeds is 3 and not a list"),
    "no baseline": ({"baseline": "aloen"}, r"there is no baseline 'aloen'; did you mean 'alone'"),
    "patterns that match nothing": (
        {"for_each": {"configs": ["no/*.yaml"]}},
        r"for_each: configs has the pattern 'no/\*.yaml', which matches no file",
    ),
    "for_each without patterns": ({"for_each": {"without": ["a.yaml"]}}, r"for_each: configs is missing or empty"),
    "variants are no mapping": ({"variants": ["alone"]}, r"groups.digits: variants is \['alone'\] and not a mapping"),
}
WRONG_VARIANT: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"confg": "alone.yaml"}, r"variants.new: there is no such key as 'confg'; did you mean 'config'"),
    "an old key": (
        {"config": "alone.yaml", "network": "mean"},
        r"variants.new: the key 'network' is now called 'evaluate'",
    ),
    "no config": ({"title": "new"}, r"groups.digits.variants.new: config is missing"),
    "no such file": ({"config": "aloen.yaml"}, r"groups.digits.variants.new: .*aloen.yaml: no such file"),
    "no such teacher": (
        {"config": "distilled.yaml", "teacher": "digits/techer"},
        r"variants.new: there is no teacher 'digits/techer'; did you mean 'digits/teacher'",
    ),
    "its own teacher": ({"config": "distilled.yaml", "teacher": "new"}, r"variants.new: is its own teacher"),
}


def complaint(path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What is printed, which must be one line, and nothing may have been run."""
    root = path.parent / "runs"
    assert main(["compare", "--config", str(path), "--root", str(root)]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert not root.exists()
    return err


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_group_gets_one_line(
    case: str, tmp_path: Path, plan: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    change, expected = WRONG[case]
    plan["groups"]["digits"] |= change
    assert re.search(expected, complaint(write(tmp_path, plan), capfd))


@pytest.mark.parametrize("case", WRONG_VARIANT)
def test_a_wrong_variant_gets_one_line(
    case: str, tmp_path: Path, plan: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    variant, expected = WRONG_VARIANT[case]
    plan["groups"]["digits"]["variants"]["new"] = variant
    assert re.search(expected, complaint(write(tmp_path, plan), capfd))


def test_an_old_key_of_the_whole_plan_gets_one_line(
    tmp_path: Path, plan: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    plan["set"] = plan.pop("overrides")
    assert "plan.yaml: the key 'set' is now called 'overrides'" in complaint(write(tmp_path, plan), capfd)


def test_a_name_that_cannot_be_a_directory_gets_one_line(
    tmp_path: Path, plan: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    plan["groups"]["../digits"] = plan["groups"].pop("digits")
    assert "'../digits' names a directory" in complaint(write(tmp_path, plan), capfd)


def test_a_name_that_is_there_twice_gets_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, new_plan())
    path.write_text(path.read_text() + "      alone: {config: alone.yaml}\n")
    assert re.search(r"groups.digits.variants.alone is set twice", complaint(path, capfd))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "--config"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config", "compare/mnist.yaml", "--processes", "-1"], "--processes -1"),
        (["--config", "compare/mnist.yaml", "--proceses", "2"], "--proceses"),
    ],
)
def test_wrong_arguments_get_one_line(args: list[str], expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *args]) == 2
    err = capfd.readouterr().err
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("name", "number"), [("mnist", 3 + 15 + 15), ("mnist_full", 15 + 25 + 25)])
def test_the_shipped_comparison_is_fair(name: str, number: int) -> None:
    plan = read_plan(SHIPPED / f"compare/{name}.yaml")
    assert len(plan.runs) == number
    for variant in [variant for variant in plan.variants if variant.baseline and variant.teacher]:
        for run, alone in zip(variant.runs, variant.baseline.runs, strict=True):
            own, other = run.config, alone.config
            assert own["data"] == other["data"]
            assert own["seed_everything"] == other["seed_everything"]
            assert own["model"]["init_args"]["student"] == other["model"]["init_args"]["student"]
            assert own["model"]["init_args"]["optimizer"] == other["model"]["init_args"]["optimizer"]
            assert without_cache(own["trainer"]) == without_cache(other["trainer"])


def without_cache(trainer: dict[str, Any]) -> dict[str, Any]:
    callbacks = [callback for callback in trainer["callbacks"] if callback["class_path"] != "TeacherCache"]
    return {key: value for key, value in trainer.items() if key != "default_root_dir"} | {"callbacks": callbacks}

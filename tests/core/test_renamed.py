"""An old name costs one line that says the new one."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from kd_lightning import callbacks, load_student, networks, schemes
from kd_lightning.__main__ import main
from kd_lightning.cli.components import PACKAGES
from kd_lightning.core.renamed import ARGUMENTS, CLASSES, renamed_argument, renamed_class

OURS = [import_module(package) for package in PACKAGES if package.startswith("kd_lightning.")]
DATA = {"class_path": "MNISTDataModule", "init_args": {"batch_size": 50}}


def complaint(capsys, folder: Path, data: dict, model: dict | None = None, trainer: dict | None = None) -> str:
    """The one line that a fit with this data, model and trainer costs."""
    arguments = {"student": {"class_path": "StudentConvNet"}} | (model or {})
    config = {"model": {"class_path": "Classifier", "init_args": arguments}, "data": data}
    if trainer:
        config["trainer"] = trainer
    (folder / "old.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["fit", f"--config={folder / 'old.yaml'}", f"--trainer.default_root_dir={folder / 'run'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO:")]
    assert line.startswith(f"kd-lightning: {folder / 'old.yaml'}:")
    return line


def test_no_old_name_is_there_any_more():
    exported = {name for package in OURS for name in package.__all__}
    assert not exported & set(CLASSES)
    classes = {kind.__name__: kind for package in OURS for each in vars(package).values() for kind in _mro(each)}
    for (owner, old), new in ARGUMENTS.items():
        kind = classes[owner]
        of_subclasses = [each for each in classes.values() if issubclass(each, kind) and not inspect.isabstract(each)]
        taken = [set(inspect.signature(each).parameters) for each in of_subclasses]
        assert any(new.partition(".")[0] in names for names in taken), (owner, new)
        assert not any(old in names for names in taken), (owner, old)


def _mro(value: object) -> tuple[type, ...]:
    return value.__mro__ if isinstance(value, type) else ()


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("DataFreeMNISTDataModule", "DataFreeMNISTDataModule"),
        ("kd_lightning.data.PairedViewsDataModule", "PairedViewsDataModule"),
        ("kd_lightning.data.rotated.RotatedMNISTDataModule", "RotatedMNISTDataModule"),
    ],
)
def test_an_old_data_module_is_one_line(old, name, tmp_path, capsys):
    line = complaint(capsys, tmp_path, DATA | {"class_path": old})
    assert line.endswith(f": data: {old!r} is now {CLASSES[name]}")
    assert renamed_class(old) == CLASSES[name]


def test_an_old_class_deep_inside_is_one_line(tmp_path, capsys):
    views = {"class_path": "PairedViews", "init_args": {"modalities": {"rows": {"class_path": "Rows"}}}}
    data = {"class_path": "ResidentDataModule", "init_args": {"source": {"class_path": "MNIST"}, "views": views}}
    assert complaint(capsys, tmp_path, data).endswith("'Rows' is now RowSequence")


@pytest.mark.parametrize(
    ("old", "new"), [("epoch_steps", "steps_per_epoch"), ("channels", "num_channels"), ("views", "num_augmented_views")]
)
def test_an_old_argument_is_one_line(old, new, tmp_path, capsys):
    line = complaint(capsys, tmp_path, {"class_path": "MNISTDataModule", "init_args": {old: 2}})
    assert line.endswith(f"data.{old}: MNISTDataModule has no such setting: it is now called {new!r}")


def test_an_old_argument_of_a_scheme_is_one_line(tmp_path, capsys):
    line = complaint(capsys, tmp_path, DATA, model={"view": "edges"})
    assert line.endswith("model.view: Classifier has no such setting: it is now called 'input_key'")


def test_an_old_argument_of_a_callback_is_one_line(tmp_path, capsys):
    callback = {"class_path": "SnapshotTeacher", "init_args": {"every": 2}}
    line = complaint(capsys, tmp_path, DATA, trainer={"callbacks": [callback]})
    assert "SnapshotTeacher has no such setting: it is now called 'interval'" in line


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (schemes.CrossModalDistiller, "views", "modalities"),
        (schemes.ONE, "branches", "num_branches"),
        (schemes.GeneralEnsemble, "networks", "num_networks"),
        (callbacks.BornAgain, "epochs", "epochs_per_generation"),
        (callbacks.LossSchedule, "number", "attribute"),
        (callbacks.AttentionMapsLogger, "images", "num_images"),
        (callbacks.SyntheticImagesLogger, "images", "num_images"),
        (schemes.InversionDistiller, "bank_size", "memory_size"),
        (schemes.PseudoExamplesDistiller, "every", "synthesis_interval"),
        (schemes.PseudoExamplesDistiller, "round_size", "synthesis_batch_size"),
        (schemes.DatasetDistillation, "rate", "lr"),
        (networks.Generator, "size", "image_shape"),
    ],
)
def test_old_arguments_of_schemes_and_callbacks_have_new_names(kind, old, new):
    assert renamed_argument(kind, old) == new
    assert new in inspect.signature(kind).parameters


@pytest.mark.parametrize("old", ["kd_lightning.networks.OldConvNet", "kd_lightning.networks.gone.OldConvNet"])
def test_an_old_network_in_a_checkpoint_is_one_line(old, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSES, "OldConvNet", "StudentConvNet")
    content = {"state_dict": {"student.x": torch.zeros(1)}, "hyper_parameters": {"student": {"class_path": old}}}
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=rf"its student cannot be built \({old} is now StudentConvNet\)") as caught:
        load_student(tmp_path / "old.ckpt")
    assert "\n" not in str(caught.value)


def test_names_that_have_not_changed_are_none():
    assert renamed_class("kd_lightning.data.MNISTDataModule") is None
    assert renamed_argument(torch.nn.Linear, "in_features") is None
    assert renamed_argument("no class", "views") is None


def test_a_function_may_have_an_old_argument_too(monkeypatch):
    monkeypatch.setitem(ARGUMENTS, ("load_student", "file"), "path")
    assert renamed_argument(load_student, "file") == "path"

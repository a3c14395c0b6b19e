"""The report of a machine, and of what a configuration needs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kd_lightning import __version__
from kd_lightning.__main__ import main
from kd_lightning.cli import doctor, extras, precision_gain
from kd_lightning.cli.config_needs import needs_of
from kd_lightning.cli.configs import list_configs
from kd_lightning.cli.extras import missing_module, version_of
from kd_lightning.cli.yaml_file import read_yaml


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise AssertionError("the doctor used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_report_has_what_an_issue_needs(offline, capsys):
    cached = offline / "runs" / "cache" / f"teacher-{'0' * 12}-{'f' * 16}.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(bytes(2**20))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for wanted in (f"kd-lightning {__version__}", f"torch {version_of('torch')}", "python 3.", "cpu: ", "float32"):
        assert f"  {wanted}" in printed or wanted in printed
    assert "  runs/cache: teacher outputs, 1 files, 1.0 MiB" in printed
    assert "mnist/teacher-0" in printed
    assert [line for line in printed.splitlines() if not line.startswith("  ")] == [
        "versions",
        "devices",
        "cached",
        "extras",
    ]


def test_needs_that_are_missing_are_named_with_the_remedy(offline, capsys, monkeypatch):
    monkeypatch.setattr("kd_lightning.cli.config_needs.missing_packages", lambda: {"graph": ["scikit-learn"]})
    Path("there.pt").touch()
    Path("mine.yaml").write_text(
        "model: {class_path: no_such_module.Net, init_args: {weights: there.pt, checkpoint: runs/no/last.ckpt}}\n"
        "data: {source: {class_path: Digits}, teacher: {path: packaged:mnist/teacher-9}}\n"
        "trainer: {logger: {class_path: WandbLogger}, max_epochs: 3, default_root_dir: runs/not-yet}\n"
    )
    monkeypatch.setattr("kd_lightning.cli.config_needs.version_of", lambda name: "")
    assert main(["doctor", "--config=mine.yaml"]) == 1
    printed = capsys.readouterr().out.partition("needs of mine.yaml\n")[2].splitlines()
    found = {line.split()[1].rstrip(":"): (line.split()[0], line) for line in printed}
    assert {name: state for name, (state, _) in found.items()} == {
        "model": "MISSING",
        "model.weights": "ok",
        "model.checkpoint": "MISSING",
        "data.source": "MISSING",
        "data.teacher.path": "MISSING",
        "trainer.logger": "MISSING",
    }
    assert "no_such_module" in found["model"][1]
    assert "pip install 'kd-lightning[graph]'" in found["data.source"][1]
    assert "pip install wandb" in found["trainer.logger"][1]


def test_every_class_of_the_shipped_files_is_found():
    missing = {
        (config.name, need.line)
        for config in list_configs()
        for need in needs_of(read_yaml(config.path).values)
        if not need.is_there and "no such file" not in need.line
    }
    assert not missing


def test_a_precision_pays_where_it_is_measurably_faster(monkeypatch, offline, capsys):
    monkeypatch.setattr(precision_gain, "_seconds", lambda device, dtype, *_: 2.0 if "float32" in str(dtype) else 1.0)
    (line, *_) = doctor.devices()
    assert "bf16 2.0 times as fast as float32: add --config configs/parts/bf16.yaml" in line
    monkeypatch.setattr(precision_gain, "_seconds", lambda device, dtype, *_: 1.0)
    (line, *_) = doctor.devices()
    assert line.endswith("stay with float32")


def test_a_mistake_costs_one_line(offline, capsys):
    assert main(["doctor", "--confg=x"]) == 2
    assert main(["doctor", "--config=no.yaml"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--confg" in first
    assert "no.yaml" in second


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'x'`"), "wandb"),
        (ModuleNotFoundError("No module named 'no_such.part'", name="no_such.part"), "no-such"),
        (ImportError("needs mlflow: pip install mlflow"), "mlflow"),
        (ImportError("cannot import name 'x' from 'json'", name="json"), ""),
        (ValueError("pip install x"), ""),
    ],
)
def test_an_error_of_an_import_names_the_package(error, package):
    assert missing_module(error).rpartition(" ")[2] == package


def test_extras_of_developers_are_not_listed():
    assert {"graph", "speech"} <= extras.missing_packages().keys()
    assert not {"dev", "foreign"} & extras.missing_packages().keys()

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open
from torch import nn

import kd_lightning
from kd_lightning.core.hashing import weights_hash
from kd_lightning.networks import StudentConvNet, WeightsError, exclude_from_state_dict, freeze, load_student
from kd_lightning.weights.export import export_checkpoint, export_student

BUILT_FROM = {"class_path": "kd_lightning.networks.StudentConvNet", "init_args": {"num_classes": 3}}


class Learner(LightningModule):
    def __init__(self, student: nn.Module, built_from: object) -> None:
        super().__init__()
        self.save_hyperparameters({"student": built_from})
        self.student, self.teacher = student, exclude_from_state_dict(freeze(StudentConvNet()))
        self.connector = nn.Linear(2, 2)


def checkpoint(learner: LightningModule, path: Path) -> str:
    torch.save({"state_dict": learner.state_dict(), "hyper_parameters": dict(learner.hparams)}, path)
    return str(path)


def test_an_export_holds_the_student_and_its_construction(tmp_path: Path) -> None:
    learner = Learner(StudentConvNet(num_classes=3), BUILT_FROM)
    direct = export_student(learner, tmp_path / "direct.safetensors")
    from_file = export_checkpoint(
        checkpoint(learner, tmp_path / "best.ckpt"), str(tmp_path / "new" / "folder" / "a.safetensors")
    )
    for path in (direct, from_file):
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(learner.student.state_dict())  # no teacher, no connector
            about = json.loads(file.metadata()["kd_lightning"])
        assert about == {
            "version": kd_lightning.__version__,
            "sha256": weights_hash(learner.student),
            "student": BUILT_FROM,
        }
        student = load_student(path)
        assert isinstance(student, StudentConvNet)
        assert weights_hash(student) == weights_hash(learner.student)


def test_a_plain_network_is_exported_and_needed_to_load(tmp_path: Path) -> None:
    network = freeze(exclude_from_state_dict(nn.Linear(4, 2)))  # left out of what holds it, not of its own export
    path = export_student(network, tmp_path / "student.safetensors")
    with pytest.raises(WeightsError, match="has no hyper-parameters to build its student: pass it as `network`"):
        load_student(path)
    assert weights_hash(load_student(path, nn.Linear(4, 2))) == weights_hash(network)
    learner = Learner(nn.Linear(4, 2), built_from=None)  # built in Python: nothing is guessed
    export_student(learner, path)
    assert weights_hash(load_student(path, nn.Linear(4, 2))) == weights_hash(learner.student)


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    network = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Conv2d(2, 4, 3), "d": nn.Linear(3, 3)})
    network["b"].weight = network["a"].weight
    network["c"].to(memory_format=torch.channels_last)
    network["d"].weight = nn.Parameter(torch.randn(6, 6)[::2, ::2].t())
    path = export_student(network, tmp_path / "student.safetensors")
    fresh = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Conv2d(2, 4, 3), "d": nn.Linear(3, 3)})
    fresh["b"].weight = fresh["a"].weight
    loaded = load_student(path, fresh)
    assert loaded["b"].weight is loaded["a"].weight
    assert weights_hash(loaded) == weights_hash(network)


def test_the_hash_beside_it_is_sha256sum_s(tmp_path: Path) -> None:
    path = export_student(nn.Linear(4, 2), tmp_path / "student.safetensors")
    beside = tmp_path / "student.safetensors.sha256"
    assert beside.read_text() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  student.safetensors\n"
    subprocess.run(["sha256sum", "--check", "--strict", beside.name], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["student.safetensors", beside.name]


def test_damage_is_noticed_with_and_without_the_hash_beside_it(tmp_path: Path) -> None:
    path = export_student(nn.Linear(4, 2), tmp_path / "student.safetensors")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"is not the file that student\.safetensors\.sha256 was written for"):
        load_student(path, nn.Linear(4, 2))
    (tmp_path / "student.safetensors.sha256").unlink()
    with pytest.raises(WeightsError, match="its tensors differ from the exported ones"):
        load_student(path, nn.Linear(4, 2))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_fault_leaves_the_old_file_and_nothing_else(broken: str, tmp_path: Path, monkeypatch) -> None:
    old = nn.Linear(4, 2)
    path = export_student(old, tmp_path / "student.safetensors")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if broken == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        export_student(nn.Linear(4, 2), path)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["student.safetensors"]
    assert weights_hash(load_student(path, nn.Linear(4, 2))) == weights_hash(old)
    new = nn.Linear(4, 2)
    assert weights_hash(load_student(export_student(new, path), nn.Linear(4, 2))) == weights_hash(new)


def test_the_same_student_gives_the_same_bytes(tmp_path: Path) -> None:
    learner = Learner(StudentConvNet(num_classes=3), BUILT_FROM)
    paths = [export_student(learner, tmp_path / f"{i}.safetensors") for i in range(8)]
    assert len({path.read_bytes() for path in paths}) == 1


def test_checkpoints_that_cannot_be_exported_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output '.*student\.onnx': name it \*\.safetensors"):
        export_student(nn.Linear(4, 2), tmp_path / "student.onnx")
    with pytest.raises(ValueError, match="LightningModule has no network named `student`"):
        export_student(LightningModule(), tmp_path / "student.safetensors")
    torch.save({"state_dict": {"model.weight": torch.ones(1)}}, tmp_path / "theirs.ckpt")
    with pytest.raises(WeightsError, match=r"theirs\.ckpt: has no student: no key starts with 'student\.'"):
        export_checkpoint(str(tmp_path / "theirs.ckpt"), str(tmp_path / "student.safetensors"))
    with pytest.raises(WeightsError, match="train the student first"):
        export_checkpoint(str(tmp_path / "runs" / "best.ckpt"), str(tmp_path / "student.safetensors"))
    assert [file.name for file in tmp_path.iterdir()] == ["theirs.ckpt"]

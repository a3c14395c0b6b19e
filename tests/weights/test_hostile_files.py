"""A file is data: hostile ones cost one line in every loader, run nothing, and reach for no network or other file."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn
from torchmetrics.functional.image import lpips  # imported, as in every program that trains

from kd_lightning import UsageError
from kd_lightning.cli.run_dir import check_checkpoint
from kd_lightning.core.hashing import hash_tensors
from kd_lightning.networks import MLP, load_student, load_teacher
from kd_lightning.weights.checkpoint_io import AtomicCheckpointIO

STATE = {"weight": torch.ones(2, 4), "bias": torch.zeros(2)}
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "urllib.", "os.mkdir")
events: list[str] = []
watched: list[bool] = []


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what Python does while `watched` is not empty: such a hook stays until the process ends."""
    if watched and (event.startswith(FORBIDDEN) or (event == "open" and "secret" in str(arguments[0]))):
        events.append(f"{event} {arguments}")


sys.addaudithook(audit)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[list[str]]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.pt").write_bytes(b"not for a checkpoint")
    events.clear()
    watched.append(True)
    yield events
    watched.clear()


class Runs:
    """A pickle of it calls a function when it is opened."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def checkpoint(path: Path, student: object = None, **more: object) -> None:
    state = {f"student.{name}": value for name, value in STATE.items()}
    version = {"pytorch-lightning_version": "2.6.6"}
    torch.save({"state_dict": state, "hyper_parameters": {"student": student}, **version, **more}, path)


def a_class(class_path: str, **arguments: Any) -> Callable[[Path], None]:
    return lambda path: checkpoint(path, {"class_path": class_path, "init_args": arguments})


def an_export(path: Path) -> None:
    student = {"class_path": f"{lpips.__name__}._LPIPS", "init_args": {"pretrained": True}}
    about = {"version": "0", "sha256": hash_tensors(STATE), "student": student}
    save_file(STATE, path, metadata={"kd_lightning": json.dumps(about)})


def rewritten(path: Path, compression: int, *more: tuple[str, bytes]) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        for name, content in more:
            new.writestr(name, content)


def overlapping(path: Path) -> None:
    """An archive whose directory gives one entry a hundred times."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", bytes(10_000))
        file.filelist *= 100
        file._didModify = True


ENDLESS = "a network without end"

LPIPS = f"{lpips.__name__}._LPIPS"
OF_NO_LOADER: dict[str, Callable[[Path], None]] = {
    "a pickle that runs a command": lambda path: path.write_bytes(pickle.dumps(Runs(os.system, "touch executed"))),
    "a pickle in an archive": lambda path: checkpoint(path, callbacks=Runs(os.system, "touch executed")),
    "a pickle that opens a file": lambda path: torch.save({"weight": Runs(open, "secret.pt")}, path),
    "an old pickle": lambda path: torch.save(Runs(eval, "1"), path, _use_new_zipfile_serialization=False),
    "a whole network": lambda path: torch.save({"state_dict": nn.Linear(4, 2)}, path),
    "an entry outside": lambda path: rewritten(path, zipfile.ZIP_STORED, ("../../escaped", b"x")),
    "an absolute entry": lambda path: rewritten(path, zipfile.ZIP_STORED, ("/tmp/escaped", b"x")),
    "a zip bomb": lambda path: rewritten(path, zipfile.ZIP_DEFLATED, ("archive/data/9", bytes(10**8))),
    "entries that overlap": overlapping,
    "a header longer than memory": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "offsets outside of the file": lambda path: path.write_bytes(save(STATE).replace(b"[0,8]", b"[0,9]")),
    "a false sum": lambda path: (checkpoint(path), path.with_name(f"{path.name}.sha256").write_text("0" * 64))[0],
}
"""Files that no loader of ours opens."""
STUDENTS: dict[str, Callable[[Path], None]] = {
    "a class that downloads": a_class(LPIPS, pretrained=True),
    "a class that reads another file": a_class(LPIPS, pretrained=True, model_path="secret.pt"),
    "an export that downloads": an_export,
    "a command": a_class("os.system", command="touch executed"),
    "a process": a_class("subprocess.Popen", args=["touch", "executed"]),
    "our loader with another file": a_class("kd_lightning.networks.load_student", path="secret.pt"),
    "our loader of teachers": a_class("kd_lightning.networks.load_teacher", network=None, checkpoint="secret.pt"),
    "a scheme of ours": a_class("kd_lightning.schemes.Classifier", network=None),
    "a class inside another": a_class("torch.nn.ModuleList", modules=[{"class_path": LPIPS, "init_args": {}}]),
    "an instantiator": lambda path: checkpoint(path, {"_instantiator": "os.system", "class_path": "os.system"}),
    "a network of terabytes": a_class("torch.nn.Linear", in_features=10**6, out_features=10**6),
    ENDLESS: a_class("MLP", in_features=1, hidden=[1] * 200_000),
}
"""Checkpoints that are data, and whose student is not one of ours."""


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        load()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


@pytest.mark.parametrize("write", OF_NO_LOADER.values(), ids=OF_NO_LOADER)
def test_no_loader_opens_it(write: Callable[[Path], None], tmp_path, recorded):
    path = tmp_path / "evil.ckpt"
    write(path)
    recorded.clear()
    loaders: dict[str, Callable[[], object]] = {
        "student": lambda: load_student(path, nn.Linear(4, 2)),
        "teacher": lambda: load_teacher(nn.Linear(4, 2), path),
        "resume": lambda: check_checkpoint(str(path)),
    }
    for load in loaders.values():
        assert "evil.ckpt" in refusal(load)
    assert recorded == []
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "write",
    [pytest.param(write, id=name, marks=[pytest.mark.slow] * (name == ENDLESS)) for name, write in STUDENTS.items()],
)
def test_no_student_is_built_of_it(write: Callable[[Path], None], tmp_path, recorded):
    path = tmp_path / "evil.ckpt"
    write(path)
    recorded.clear()
    assert refusal(lambda: load_student(path)).startswith(f"{path}: ")
    load_teacher(nn.Linear(4, 2), path)  # its weights are data, whatever its student is
    assert recorded == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evil.ckpt", "secret.pt"]


@pytest.mark.parametrize("version", ["0.0.1", "../../x", "1.9.0", "", 3, None, "2.6.6; import os", "9" * 50])
def test_a_false_version_is_one_line(version: object, tmp_path, recorded):
    path = tmp_path / "old.ckpt"
    checkpoint(path, **{"pytorch-lightning_version": version})
    if version is None:
        assert "pytorch-lightning_version" in AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
        return
    for load in (
        lambda: check_checkpoint(str(path)),
        lambda: AtomicCheckpointIO().load_checkpoint(path, weights_only=True),
    ):
        assert "claims to be of Lightning" in refusal(load)
    assert recorded == []


@pytest.mark.parametrize("version", ["2.0.0", "2.6.6", "2.7.0.dev20260101", "2.6.6+cu1", "10.0"])
def test_a_release_is_no_false_version(version: str, tmp_path):
    checkpoint(tmp_path / "last.ckpt", **{"pytorch-lightning_version": version})
    check_checkpoint(str(tmp_path / "last.ckpt"))


class Mine(nn.Linear):
    pass


def test_classes_of_the_caller_are_built_and_no_others(tmp_path):
    path = tmp_path / "mine.ckpt"
    a_class(f"{__name__}.Mine", in_features=4, out_features=2)(path)
    assert "pass its class in `classes`" in refusal(lambda: load_student(path))
    assert "pass its class in `classes`" in refusal(lambda: load_student(path, classes=[MLP]))
    assert isinstance(load_student(path, classes=[Mine]), Mine)

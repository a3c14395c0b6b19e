"""Files that are no weights: each is refused in one line that names it, and none is executed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from kd_lightning.core.hashing import hash_tensors
from kd_lightning.networks import WeightsError, load_student, load_teacher
from kd_lightning.weights.reading import read_weights

STATE = {"weight": torch.ones(2, 4), "bias": torch.zeros(2)}


def as_torch(content: object, legacy: bool = False) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def as_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)  # type: ignore[return-value]


def cut(write: Callable[[Path], None], keep: float) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return written


def header(text: str, data: int = 40) -> Callable[[Path], None]:
    return as_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(data))


def one(dtype: str, shape: list[int], offsets: list[int]) -> str:
    return json.dumps({"weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../escaped", b"data")


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "empty": ("t.ckpt", as_bytes(b""), "is empty"),
    "web page": ("t.ckpt", as_bytes(b"\n<!DOCTYPE html><html>404</html>"), r"is a web page \(HTML\)"),
    "web page as safetensors": ("t.safetensors", as_bytes(b"<html>404</html>"), r"is a web page \(HTML\)"),
    "LFS pointer": ("t.pt", as_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "`git lfs pull`"),
    "truncated": ("t.ckpt", cut(as_torch(STATE), 0.5), "is truncated"),
    "three bytes": ("t.ckpt", as_bytes(b"PK\x03"), "is truncated"),
    "truncated, legacy": ("t.pt", cut(as_torch(STATE, legacy=True), 0.5), "is corrupt, or not a checkpoint"),
    "its end missing, legacy": ("t.pt", cut(as_torch(STATE, legacy=True), 0.99), "is corrupt, or not a checkpoint"),
    "truncated safetensors": ("t.safetensors", as_bytes(save(STATE)[:-4]), "corrupt or truncated safetensors"),
    "text": ("t.pt", as_bytes(b"hello world, these are no weights"), "is corrupt, or not a checkpoint"),
    "noise": ("t.pt", as_bytes(bytes(range(7, 200))), "is corrupt, or not a checkpoint"),
    "archive that climbs out": ("t.pt", archive, "has the entry '../../escaped'"),
    "nothing in it, safetensors": ("t.safetensors", as_bytes(save({})), "has no weights"),
    "a tensor": ("t.pt", as_torch(torch.ones(2)), "has a Tensor without weights"),
    "nothing in it": ("t.pt", as_torch({}), "has a dict without weights"),
    "another container": ("t.pt", as_torch({"models": [STATE], "epoch": 3}), "its 'models' is a list, not a tensor"),
    "a whole network": ("t.pt", as_torch(nn.Linear(4, 2)), r"Python object torch\.nn\.modules\.linear\.Linear"),
    # Hostile headers: lengths, offsets, shapes, dtypes and nesting that a reader might believe.
    "header longer than memory": ("t.safetensors", as_bytes(struct.pack("<Q", 2**62) + b"{}"), "header too large"),
    "header longer than the file": ("t.safetensors", as_bytes(struct.pack("<Q", 9**8) + b"{}"), "header length"),
    "header without its name": ("t.pt", as_bytes(struct.pack("<Q", 2**62) + b"{}"), "header too large"),
    "no JSON": ("t.safetensors", header("{" * 50), "invalid JSON"),
    "nested": ("t.safetensors", header('{"a":' + "[" * 10**5 + "]" * 10**5 + "}"), "recursion limit"),
    "beyond the end": ("t.safetensors", header(one("F32", [2**40], [0, 2**42])), "corrupt or truncated safetensors"),
    "overflow": ("t.safetensors", header(one("F32", [2**33, 2**33], [0, 32])), "overflow"),
    "negative": ("t.safetensors", header(one("F32", [-2, 4], [0, 32])), "invalid value"),
    "unknown dtype": ("t.safetensors", header(one("PY", [2], [0, 8])), "unknown variant"),
    "data that no tensor owns": (
        "t.safetensors",
        header(one("F32", [2, 4], [0, 32])),
        "corrupt or truncated safetensors",
    ),
}


@pytest.mark.parametrize(("name", "write", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line(name: str, write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    for load in (lambda path: load_teacher(nn.Linear(4, 2), path), load_student):
        with pytest.raises(WeightsError, match=message) as refusal:
            load(tmp_path / name)
        assert str(refusal.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < len(str(tmp_path)) + 300


def test_missing_files_name_similar_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file, and no checkpoint in .*teacher: train the teacher first"):
        read_weights(tmp_path / "teacher" / "best.ckpt", "teacher")
    (tmp_path / "config.yaml").touch()  # a run that has only begun
    with pytest.raises(WeightsError, match="train the student first"):
        read_weights(tmp_path / "best.ckpt", "student")
    (tmp_path / "best.ckpt").touch()
    (tmp_path / "other.pt").touch()
    with pytest.raises(WeightsError, match=r"no such file; the nearest in .*: best\.ckpt, other\.pt$"):
        read_weights(tmp_path / "bets.ckpt", "teacher")
    with pytest.raises(WeightsError, match=r"no such file, and no directory .*exports$"):
        read_weights(tmp_path / "exports" / "a.safetensors", "teacher")
    with pytest.raises(WeightsError, match=r"is a directory, not a file: name a file in it: best\.ckpt, other\.pt"):
        read_weights(tmp_path, "teacher")
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(WeightsError, match="is not a regular file"):
        read_weights(tmp_path / "pipe.ckpt", "teacher")


@pytest.mark.parametrize("legacy", [False, True])
def test_every_supported_file_is_read(legacy: bool, tmp_path: Path) -> None:
    as_torch(STATE, legacy)(tmp_path / "plain.pth")
    as_torch({"state_dict": STATE, "epoch": 3, "optimizer_states": []}, legacy)(tmp_path / "lightning.ckpt")
    save_file(STATE, tmp_path / "tensors.safetensors", metadata={"format": "pt"})
    save_file(STATE, tmp_path / "tensors.bin")  # the content decides, not the name
    for name in ("plain.pth", "lightning.ckpt", "tensors.safetensors", "tensors.bin"):
        file = read_weights(tmp_path / name, "teacher")
        assert file.student is None
        assert file.tensors.keys() == STATE.keys()
        assert all(torch.equal(file.tensors[key], STATE[key]) for key in STATE)


def test_a_hash_beside_the_file_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save(STATE, path)
    (tmp_path / "t.pt.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  t.pt\n")
    read_weights(path, "teacher")
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 1.0))] ^= 1  # one bit of one weight, which torch.load does not notice
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["weight"], STATE["weight"])
    with pytest.raises(WeightsError, match=r"is not the file that t\.pt\.sha256 was written for"):
        read_weights(path, "teacher")
    (tmp_path / "t.pt.sha256").write_text("")
    with pytest.raises(WeightsError, match=r"is not the file that t\.pt\.sha256 was written for"):
        read_weights(path, "teacher")


# ---- a file is data, never code


class Touch:
    """A pickle that runs a command when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "in the hyper-parameters"])
def test_a_pickle_that_runs_a_command(kind: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.ckpt", tmp_path / "executed"
    content = {"state_dict": STATE, "callbacks": Touch(marker)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": Touch(marker)}, protocol=2))
    elif kind == "in the hyper-parameters":
        torch.save({"state_dict": STATE, "hyper_parameters": {"student": Touch(marker)}}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    for load in (lambda path: load_teacher(nn.Linear(4, 2), path), load_student):
        with pytest.raises(WeightsError, match=r"contains the Python object posix\.system, which could run code"):
            load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if kind == "zip" else None  # the same file is dangerous where it is trusted
    assert marker.exists() == (kind == "zip")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `trap` that can be imported and leaves a mark when it is; and `lazy`, imported, that would import it."""
    marker = tmp_path / "executed"
    (tmp_path / "trap.py").write_text(
        f"from pathlib import Path\nfrom torch import nn\nPath({str(marker)!r}).touch()\n"
    )
    (tmp_path / "lazy.py").write_text("def __getattr__(name):\n    import trap\n    return trap.nn.Linear\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("lazy")
    yield marker
    sys.modules.pop("lazy")
    assert "trap" not in sys.modules


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 2}}
HOSTILE: dict[str, object] = {
    "a module that is not imported": {"class_path": "trap.Student", "init_args": {}},
    "a name that imports lazily": {"class_path": "lazy.Student"},
    "a function": {"class_path": "os.system", "init_args": {"command": "touch executed"}},
    "a class that is no network": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "executed"]}},
    "a builtin": {"class_path": "builtins.exec", "init_args": {"source": "open('executed', 'w')"}},
    "nested": {"class_path": "torch.nn.Sequential", "init_args": {"args": [{"class_path": "trap.Student"}]}},
    "a path": {"class_path": "../../trap.Student"},
    "an attribute of a class": {"class_path": "torch.nn.Linear.forward"},
    "calls of other kinds": {**LINEAR, "dict_kwargs": {"a": {"class_path": "trap.Student"}}},
    "no name": {"class_path": ""},
    "arguments that are no arguments": {"class_path": "torch.nn.Linear", "init_args": "touch executed"},
}


@pytest.mark.parametrize("student", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("kind", ["checkpoint", "safetensors"])
def test_hyper_parameters_import_and_call_nothing(student: dict, kind: str, trap: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"evil.{kind}"
    if kind == "checkpoint":
        about = {"student": student, "_instantiator": "trap.instantiate", "_class_path": "trap.Learner"}
        torch.save({"state_dict": {f"student.{k}": v for k, v in STATE.items()}, "hyper_parameters": about}, path)
    else:
        about = {"version": "0", "sha256": hash_tensors(STATE), "student": student}
        save_file(STATE, path, metadata={"kd_lightning": json.dumps(about)})
    with pytest.raises(WeightsError, match=r"its student cannot be built \(.*\): pass it as `network`") as refusal:
        load_student(path)
    assert "\n" not in str(refusal.value)
    assert load_student(path, nn.Linear(4, 2)).bias is not None
    assert not trap.exists()


@pytest.mark.parametrize("about", ["[" * 10**5, "[1]", "no JSON", '{"sha256": {}}', '{"sha256": null, "student": 3}'])
def test_metadata_that_is_not_ours(about: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", metadata={"kd_lightning": about})
    with pytest.raises(WeightsError, match=r"a\.safetensors: (is corrupt|its tensors differ|has no hyper-parameters)"):
        load_student(tmp_path / "a.safetensors")


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "hf", "file"])
def test_only_local_files(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was reached")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(WeightsError, match="from local files only: download it"):
        load_teacher(nn.Linear(4, 2), f"{scheme}://example.org/teacher.ckpt")

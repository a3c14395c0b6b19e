from __future__ import annotations

import subprocess
import sys
from os import PathLike
from pathlib import Path

import jsonargparse
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.networks import (
    MLP,
    ConvNet,
    StudentConvNet,
    TeacherConvNet,
    WeightsError,
    is_excluded_from_state_dict,
    is_frozen,
    load_student,
    load_teacher,
    weights_hash,
)


def network(num_classes: int = 3) -> ConvNet:
    return ConvNet(width=4, num_classes=num_classes, batch_norm=True)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def write(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if path.suffix == ".ckpt" else state, path)
    return path


PREFIXES = ["", "student.", "model.", "module.", "network.", "teacher.", "_orig_mod.", "module.student._orig_mod."]


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_teacher_is_found_under_its_prefix(prefix: str, suffix: str, tmp_path: Path) -> None:
    trained = network()
    path = write(prefixed(prefix, trained.state_dict()), tmp_path / f"teacher{suffix}")
    fresh = network()
    teacher = load_teacher(fresh, path)
    assert teacher is fresh
    assert weights_hash(teacher) == weights_hash(trained)
    assert is_frozen(teacher)
    assert is_excluded_from_state_dict(teacher)
    assert weights_hash(load_teacher(network(), str(path), prefix)) == weights_hash(trained)
    assert weights_hash(load_teacher(network(), path, prefix.removesuffix("."))) == weights_hash(trained)


def test_other_keys_beside_the_prefix_do_not_matter(tmp_path: Path) -> None:
    trained = network()
    state = prefixed("student.", trained.state_dict()) | {"terms.hint.connector.weight": torch.ones(2)}
    assert weights_hash(load_teacher(network(), write(state, tmp_path / "a.ckpt"))) == weights_hash(trained)


def test_two_networks_in_one_file_must_be_told_apart(tmp_path: Path) -> None:
    first, second = network(), network()
    state = prefixed("peers.0.", first.state_dict()) | prefixed("peers.1.", second.state_dict())
    path = write(state, tmp_path / "peers.ckpt")
    with pytest.raises(WeightsError, match=r"has 2 networks with these keys, under peers\.0\., peers\.1\.: .*`prefix`"):
        load_teacher(network(), path)
    assert weights_hash(load_teacher(network(), path, prefix="peers.1")) == weights_hash(second)
    with pytest.raises(WeightsError, match=r"no key under the prefix 'peer\.0\.'; the nearest in the file: peers\.0\."):
        load_teacher(network(), path, prefix="peer.0")


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


BAD_STATES = {
    "missing": (
        lambda state: without(state, "conv.2.1.running_var"),
        r"not those of ConvNet: 1 missing, the first 'conv\.2\.1\.running_var' \(the nearest in the file: conv\.",
    ),
    "misspelled under a prefix": (
        lambda state: prefixed("student.", without(state, "classifier.bias") | {"clasifier.bias": torch.ones(3)}),
        r"under 'student\.' .*: 1 missing, the first 'classifier\.bias' and 1 unexpected, the first 'clasifier\.bias'",
    ),
    "unexpected": (
        lambda state: state | {"aux.weight": torch.ones(1)},
        r"1 unexpected, the first 'aux\.weight': build the saved network",
    ),
    "another network": (
        lambda state: MLP(4, [3]).state_dict(),
        "21 missing, .* and 2 unexpected, the first 'hidden.0.weight'",
    ),
    "wrong class count": (
        lambda state: network(num_classes=5).state_dict(),
        r"classifier\.weight has shape \(5, 16\) in the file and \(3, 16\) in ConvNet: .* number of classes",
    ),
    "all NaN": (
        lambda state: {
            name: torch.full_like(value, torch.nan) if value.is_floating_point() else value
            for name, value in state.items()
        },
        r"108 of the 108 values of conv\.0\.0\.weight are not finite",
    ),
    "one NaN": (
        lambda state: state | {"classifier.bias": torch.tensor([0.0, torch.nan, 1.0])},
        r"1 of the 3 values of classifier\.bias are not finite: .* use an earlier checkpoint",
    ),
    "an infinite variance": (
        lambda state: state | {"conv.0.1.running_var": torch.full((4,), torch.inf)},
        r"4 of the 4 values of conv\.0\.1\.running_var are not finite",
    ),
    "beyond the network's dtype": (
        lambda state: state | {"classifier.bias": torch.full((3,), 1e300, dtype=torch.float64)},
        r"3 of the 3 values of classifier\.bias are not finite",
    ),
    "quantised": (
        lambda state: state | {"classifier.weight": torch.ones(3, 16, dtype=torch.int8)},
        r"classifier\.weight is torch\.int8 in the file and torch\.float32 in ConvNet",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_STATES.values(), ids=BAD_STATES.keys())
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(spoil, message: str, tmp_path: Path) -> None:
    fresh = network()
    before = weights_hash(fresh)
    path = write(spoil(network().state_dict()), tmp_path / "teacher.pt")
    with pytest.raises(WeightsError, match=message) as refusal:
        load_teacher(fresh, path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
    assert weights_hash(fresh) == before
    assert fresh.training
    assert not is_frozen(fresh)


def test_a_mask_of_minus_infinity_from_construction_is_accepted(tmp_path: Path) -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    path = write(Masked().state_dict(), tmp_path / "masked.pt")
    load_teacher(Masked(), path)
    write(Masked().state_dict() | {"mask": torch.full((2, 2), -torch.inf)}, path)
    with pytest.raises(WeightsError, match="3 of the 4 values of mask"):
        load_teacher(Masked(), path)


def test_a_teacher_saved_in_half_precision_keeps_the_network_s_dtype(tmp_path: Path) -> None:
    path = write(network().half().state_dict(), tmp_path / "half.pt")
    assert load_teacher(network(), path).classifier.weight.dtype == torch.float32


def test_a_network_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="ReLU has no weights to load"):
        load_teacher(nn.ReLU(), write({"weight": torch.ones(1)}, tmp_path / "a.pt"))


def test_the_command_line_calls_load_teacher_by_its_dotted_name(tmp_path: Path) -> None:
    class Learner(nn.Module):
        def __init__(self, teacher: nn.Module) -> None:
            super().__init__()
            self.teacher = teacher

    trained = TeacherConvNet()
    path = write(prefixed("student.", trained.state_dict()), tmp_path / "best.ckpt")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Learner, "model")
    called = {
        "class_path": "kd_lightning.networks.load_teacher",
        "init_args": {
            "network": {"class_path": "kd_lightning.networks.TeacherConvNet"},
            "checkpoint": str(path),
            "prefix": "student",
        },
    }
    config = parser.parse_object({"model": {"teacher": called}})
    assert weights_hash(parser.instantiate(config).model.teacher) == weights_hash(trained)


# ---- students


class Wrapper(nn.Module):
    """A network that is built of others, as a hyper-parameter file describes it."""

    def __init__(self, parts: list[nn.Module], named: dict[str, nn.Module], scale: float = 1.0) -> None:
        super().__init__()
        self.parts, self.named, self.scale = nn.ModuleList(parts), nn.ModuleDict(named), scale


def checkpoint(student: nn.Module, built_from: object, path: Path) -> Path:
    state = prefixed("student.", student.state_dict()) | {"terms.kd.connector.weight": torch.ones(1)}
    torch.save({"state_dict": state, "hyper_parameters": {"student": built_from, "lr_interval": "epoch"}}, path)
    return path


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 1}}


@pytest.mark.parametrize(
    ("student", "built_from"),
    [
        (
            StudentConvNet(True),
            {"class_path": "kd_lightning.networks.StudentConvNet", "init_args": {"batch_norm": True}},
        ),
        (StudentConvNet(), {"class_path": "kd_lightning.networks.images.convnet.StudentConvNet", "init_args": {}}),
        (StudentConvNet(), {"class_path": "StudentConvNet"}),
        (StudentConvNet(), {"class_path": "kd_lightning.networks.convnet.StudentConvNet"}),  # its module has moved
        (MLP(6, [5, 4]), {"class_path": "MLP", "init_args": {"in_features": 6, "hidden": [5, 4]}}),
        (
            Wrapper([nn.Linear(2, 1)], {"a": nn.Linear(2, 1)}, 0.5),
            {
                "class_path": f"{__name__}.Wrapper",
                "init_args": {"parts": [LINEAR], "named": {"a": LINEAR}, "scale": 0.5},
            },
        ),
    ],
)
def test_a_student_is_built_from_the_file_s_own_hyper_parameters(student, built_from, tmp_path: Path) -> None:
    loaded = load_student(checkpoint(student, built_from, tmp_path / "best.ckpt"), classes=[Wrapper])
    assert type(loaded) is type(student)
    assert weights_hash(loaded) == weights_hash(student)
    assert not any(layer.training for layer in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not is_frozen(loaded)
    assert all(layer.training for layer in loaded.train().modules())
    if isinstance(student, Wrapper):
        assert loaded.scale == 0.5


@pytest.mark.slow  # a process that imports torch anew
def test_a_student_is_loaded_in_a_fresh_process_with_no_teacher_and_no_lightning(tmp_path: Path) -> None:
    student = StudentConvNet()
    path = checkpoint(student, {"class_path": "kd_lightning.networks.StudentConvNet"}, tmp_path / "best.ckpt")
    code = (
        "import sys; from kd_lightning import load_student; from kd_lightning.networks import weights_hash; "
        f"print(weights_hash(load_student({str(path)!r}))); assert 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == weights_hash(student)


def test_a_given_network_is_filled_whatever_the_file_says(tmp_path: Path) -> None:
    student = network()
    path = checkpoint(student, {"class_path": "nowhere.Student"}, tmp_path / "best.ckpt")
    fresh = network()
    assert load_student(path, fresh) is fresh
    assert weights_hash(fresh) == weights_hash(student)
    plain = write(student.state_dict(), tmp_path / "student.safetensors")
    assert weights_hash(load_student(plain, network())) == weights_hash(student)
    with pytest.raises(WeightsError, match=r"has shape \(3, 16\) in the file and \(5, 16\)"):
        load_student(path, network(num_classes=5))


@pytest.mark.parametrize(
    ("built_from", "message"),
    [
        (None, "has no hyper-parameters to build its student: pass it as `network`"),
        ("StudentConvNet", "has no hyper-parameters to build its student"),
        ({"class_path": "kd_lightning.networks.convnet.Gone"}, r"Gone is not a class of networks\): pass it as"),
        (
            {"class_path": "nowhere.Student"},
            r"nowhere\.Student is not imported: import it, and pass its class",
        ),
        ({"class_path": "StudentNet"}, r"\(StudentNet is not a class of networks\): pass it as `network`"),
        ({"class_path": "StudentConvNet", "init_args": {"batchnorm": True}}, r"unexpected keyword .*'batchnorm'"),
        ({"class_path": "torch.nn.Identity"}, "Identity has no weights to load"),
        ({"class_path": "TeacherConvNet"}, r"conv\.0\.weight has shape"),
    ],
)
def test_a_student_that_cannot_be_rebuilt_has_to_be_given(built_from: object, message: str, tmp_path: Path) -> None:
    path = checkpoint(StudentConvNet(), built_from, tmp_path / "best.ckpt")
    with pytest.raises(WeightsError, match=message) as refusal:
        load_student(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def test_the_path_may_be_any_path_like(tmp_path: Path) -> None:
    class Somewhere(PathLike[str]):
        def __fspath__(self) -> str:
            return str(write(network().state_dict(), tmp_path / "a.pt"))

    load_teacher(network(), Somewhere())


def test_a_checkpoint_of_several_networks_gives_each_of_them(tmp_path):
    networks = {"student": nn.Linear(4, 2), "peers.0": nn.Linear(4, 2)}
    state = {
        f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()
    }
    for deployed in networks:
        torch.save({"state_dict": state, "inference_network": deployed}, tmp_path / "last.ckpt")
        found = load_student(tmp_path / "last.ckpt", nn.Linear(4, 2))
        assert torch.equal(found.weight, networks[deployed].weight)
    peer = load_student(tmp_path / "last.ckpt", nn.Linear(4, 2), name="peers.0")
    assert torch.equal(peer.weight, networks["peers.0"].weight)
    with pytest.raises(WeightsError, match=r"has no network 'peers\.1'; the nearest in the file: peers\.0"):
        load_student(tmp_path / "last.ckpt", nn.Linear(4, 2), name="peers.1")
    with pytest.raises(WeightsError, match=r"pass 'peers\.0' as `network`"):
        load_student(tmp_path / "last.ckpt", name="peers.0")

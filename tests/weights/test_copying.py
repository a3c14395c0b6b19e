from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning import load_student
from kd_lightning.networks import ConvNet, exclude_from_state_dict, freeze
from kd_lightning.weights.copying import copy_layers
from tests import toys


def network(width: int, seed: int) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(width, batch_norm=True)


def test_chosen_layers_are_the_teachers_buffers_included_and_the_others_the_students_own():
    student, untouched, teacher = network(8, 0), network(8, 0), network(8, 1)
    teacher(torch.randn(4, 3, 28, 28))  # moves BatchNorm's statistics
    assert (
        copy_layers(
            student,
            exclude_from_state_dict(freeze(teacher)),
            {"conv.0": "conv.0", "classifier.bias": "classifier.bias"},
        )
        is student
    )
    for name, value in nn.Module.state_dict(student).items():
        inherited = name.startswith("conv.0.") or name == "classifier.bias"
        source = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
        assert torch.equal(value, source[name] if inherited else untouched.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_it_is_a_copy_so_that_training_does_not_change_the_teacher():
    student, teacher = network(8, 0), network(8, 1)
    before = teacher.conv[0][0].weight.clone()
    copy_layers(student, teacher, {"conv.0": "conv.0"})
    with torch.no_grad():
        student.conv[0][0].weight.add_(1)
    assert torch.equal(teacher.conv[0][0].weight, before)


def test_every_second_layer_as_in_distilbert():
    teacher = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    student = copy_layers(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), teacher, {"0": "0", "1": "2", "2": "4"})
    assert [torch.equal(student[i].weight, teacher[2 * i].weight) for i in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({}, r"layers is empty: map each of the student's layers"),
        ({"conv.9": "conv.0"}, r"the student has nothing to copy under 'conv\.9'; there are conv\.0\.0"),
        ({"conv.0": "conv"}, r"the student's 'conv\.0' has .* and the teacher's 'conv' .*only layers of the same"),
        ({"conv.0": "con"}, r"the teacher has nothing to copy under 'con'"),
        ({"pool": "pool"}, r"the student has nothing to copy under 'pool'"),
        ({"conv.2": "conv.2"}, r"\(8, 8, 3, 3\).*\(16, 16, 3, 3\)"),
    ],
)
def test_layers_that_cannot_be_copied_are_refused_with_the_names_of_others(layers, says):
    with pytest.raises(ValueError, match=says) as refusal:
        copy_layers(network(8, 0), network(16, 1), layers)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("function", ["copy_layers", "load_student"])
def test_a_student_that_began_with_someone_elses_weights_is_loaded_without_them(function, tmp_path):
    """What a checkpoint of the command line says of its student: the function, and the network that it filled."""
    arguments = {
        "copy_layers": {"student": convnet(), "teacher": {"class_path": "gone.Teacher"}, "layers": {"0": "0"}},
        "load_student": {"path": "gone.ckpt", "network": convnet()},
    }
    described = {"class_path": f"kd_lightning.networks.{function}", "init_args": arguments[function]}
    trained = ConvNet(8).state_dict()
    checkpoint = {
        "state_dict": {f"student.{key}": value for key, value in trained.items()},
        "hyper_parameters": {"student": described},
        "inference_network": "student",
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert toys.same(load_student(tmp_path / "last.ckpt").state_dict(), trained)


def convnet() -> dict[str, object]:
    return {"class_path": "kd_lightning.networks.ConvNet", "init_args": {"width": 8}}

"""Teachers that ride along with the package."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_lightning import UsageError, load_teacher
from kd_lightning.core.packaged import packaged_names, packaged_path
from kd_lightning.data import MNIST
from kd_lightning.networks import TeacherConvNet
from kd_lightning.weights import load_student
from kd_lightning.weights.reading import WeightsError

IMAGES = 500


@pytest.mark.parametrize("name", packaged_names())
def test_a_packaged_teacher_knows_digits_and_is_built_from_its_file(name):
    network = TeacherConvNet(batch_norm="batch-norm" in name)
    teacher = load_teacher(network, name)
    test = MNIST().test()
    images = test.images[:IMAGES].expand(-1, 3, -1, -1).float() / 255
    predicted = teacher(images).argmax(1)
    assert (predicted == test.labels[:IMAGES]).float().mean() > 0.97
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(load_student(name)(images[:9]).argmax(1), predicted[:9])


def test_four_teachers_differ():
    assert packaged_names() == [f"packaged:mnist/teacher-{end}" for end in ("0", "1", "2", "batch-norm")]
    assert len({packaged_path(name).read_bytes() for name in packaged_names()}) == 4


def test_a_wrong_name_or_network_costs_one_line():
    with pytest.raises(
        UsageError, match=r"packaged:mnist/teacher: no such weights; did you mean 'packaged:mnist/teach"
    ):
        load_teacher(TeacherConvNet(), "packaged:mnist/teacher")
    with pytest.raises(WeightsError, match="build the network with the file's widths"):
        load_teacher(TeacherConvNet(num_classes=7), "packaged:mnist/teacher-0")


def test_a_prefix_may_be_the_end_of_the_files_only_one(tmp_path):
    layer = nn.Linear(4, 3)
    state = {f"student.classifier.{name}": value for name, value in layer.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "one.ckpt")
    assert torch.equal(load_teacher(nn.Linear(4, 3), tmp_path / "one.ckpt", "classifier").weight, layer.weight)
    torch.save({"state_dict": state | {f"teacher.{name}": x for name, x in state.items()}}, tmp_path / "two.ckpt")
    with pytest.raises(WeightsError, match=r"no key under the prefix 'classifier\.'"):
        load_teacher(nn.Linear(4, 3), tmp_path / "two.ckpt", "classifier")

from __future__ import annotations

import copy

import pytest
import torch

from kd_lightning import load_student, tap
from kd_lightning.networks import StudentConvNet, repeat_channels


def test_grey_images_are_what_three_equal_channels_are():
    torch.manual_seed(0)
    plain = StudentConvNet()
    grey = repeat_channels(copy.deepcopy(plain))
    images = torch.rand(4, 1, 28, 28)
    repeated = images.repeat(1, 3, 1, 1)
    assert torch.equal(grey(images), plain(repeated))
    assert torch.equal(grey(repeated), plain(repeated))
    assert torch.equal(copy.deepcopy(grey)(images), plain(repeated))
    assert grey.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(tap(grey, images, ["input"])["input"], repeated)


def test_gradients_reach_the_grey_image():
    network = repeat_channels(StudentConvNet())
    images = torch.rand(2, 1, 28, 28, requires_grad=True)
    network(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_checkpoint_builds_it_again(tmp_path):
    network = repeat_channels(StudentConvNet())
    described = {
        "class_path": "kd_lightning.networks.repeat_channels",
        "init_args": {"network": {"class_path": "kd_lightning.networks.StudentConvNet"}},
    }
    state = {f"student.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"student": described}}, tmp_path / "last.ckpt")
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(load_student(tmp_path / "last.ckpt")(images), network.eval()(images))


@pytest.mark.parametrize("shape", [(4, 2, 28, 28), (4, 28, 28)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"StudentConvNet repeats one channel to 3 and its input is \(4, 2"):
        repeat_channels(StudentConvNet())(torch.zeros(shape))
    with pytest.raises(ValueError, match="num_channels=0 must be at least 1"):
        repeat_channels(StudentConvNet(), 0)

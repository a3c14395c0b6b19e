from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.core.errors import NonFiniteError
from kd_lightning.networks import ConvNet
from kd_lightning.schemes import FewShotDistiller
from kd_lightning.weights.pruning import prune
from tests import toys

LAYERS = ["conv.0", "conv.2", "conv.4"]


def learner(**changes: Any) -> FewShotDistiller:
    torch.manual_seed(2)
    teacher = ConvNet(8)
    student = prune(ConvNet(5), teacher, [*LAYERS, "classifier"])
    return FewShotDistiller(student, teacher, LAYERS, **changes)


def case() -> toys.Case:
    """The first layer as well has something to mend: alone, pruning leaves it as it was."""
    ours = learner(optimizer=partial(torch.optim.SGD, lr=0.5))
    ours.student.conv[0].weight.data.mul_(0.9)
    return toys.Case(ours)


CASES = {"few_shot": case}


def rows(maps: Tensor) -> np.ndarray:
    return maps.permute(0, 2, 3, 1).flatten(0, 2).detach().double().numpy()


def test_a_step_is_the_papers_1x1_convolutions_fitted_by_least_squares_and_merged(tmp_path):
    """Written out: an explicit 1x1 convolution behind each layer, by numpy's least squares, then absorbed."""
    ours = learner()
    teacher, student = ours.teacher, ours.student
    images = torch.rand(40, 3, 28, 28)
    x, y = images, images  # what the layers of either see
    expected: dict[str, Tensor] = {}
    for index, name in ((0, "conv.0"), (2, "conv.2"), (4, "conv.4")):
        theirs, pruned = teacher.conv[index], student.conv[index]
        kept = sorted(theirs.weight.abs().sum((1, 2, 3)).argsort()[-5:].tolist())
        f, g = pruned(x), theirs(y)
        mixing, *_ = np.linalg.lstsq(rows(f), rows(g)[:, kept], rcond=1e-5)
        pointwise = nn.Conv2d(5, 5, 1, bias=False)
        pointwise.weight.data = torch.from_numpy(mixing.T).float()[:, :, None, None]
        expected[f"{name}.weight"] = torch.einsum("oc,cihw->oihw", pointwise.weight[:, :, 0, 0], pruned.weight)
        expected[f"{name}.bias"] = pointwise.weight[:, :, 0, 0] @ pruned.bias
        x, y = pointwise(f).relu(), g.relu()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    toys.trainer(tmp_path, max_steps=1, enable_checkpointing=False).fit(ours, toys.Loader([images]))
    after = student.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value.detach(), rtol=1e-3, atol=1e-4)
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    assert not torch.equal(after["conv.2.weight"], before["conv.2.weight"])


def test_it_comes_nearer_to_the_teacher_and_once_is_enough(tmp_path):
    ours = learner()
    images = torch.rand(64, 3, 28, 28)
    with torch.no_grad():
        theirs, before = ours.teacher(images), ours.student(images)
    trainer = toys.trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    trainer.fit(ours, toys.Loader([images]))
    after = ours.student(images)
    assert (after - theirs).square().mean() < 0.98 * (before - theirs).square().mean()
    assert sum(ours.compute_losses(images).values()) < 1e-6


def test_nothing_pruned_is_nothing_to_do():
    torch.manual_seed(2)
    teacher = ConvNet(6)
    ours = FewShotDistiller(prune(ConvNet(6), teacher, [*LAYERS, "classifier"]), teacher, LAYERS)
    images = torch.rand(20, 3, 28, 28)
    fitted = ours.fit(images)
    whole = ConvNet(6)
    whole.load_state_dict({name: value.detach() for name, value in fitted.items()})
    torch.testing.assert_close(whole(images), teacher(images), rtol=1e-4, atol=1e-5)


def test_arguments_that_do_not_fit_are_refused():
    network = ConvNet(4)
    with pytest.raises(ValueError, match="share parameters"):
        FewShotDistiller(network, network, LAYERS)
    with pytest.raises(ValueError, match="is not a convolution, linear or BatchNorm layer"):
        FewShotDistiller(ConvNet(4), ConvNet(6), ["conv.1"])


def test_an_input_that_is_not_finite_is_one_line(tmp_path):
    images = torch.rand(4, 3, 28, 28)
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"term 'conv_0' is not finite at step 0"):
        toys.trainer(tmp_path, max_steps=1).fit(learner(), toys.Loader([images]))

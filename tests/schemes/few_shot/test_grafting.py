from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import HintLoss
from kd_lightning.networks import ConvNet, GraftedStudent
from kd_lightning.networks.wrappers.grafted import Blocks
from kd_lightning.schemes import GraftingDistiller
from tests import toys
from tests.schemes.two_player_steps import sgd

BLOCKS = [["conv.0", "conv.1"], ["conv.2", "conv.3"], ["conv.4", "conv.5", "pool", "flatten", "classifier"]]


def learner(**changes: Any) -> GraftingDistiller:
    torch.manual_seed(1)
    student = GraftedStudent(ConvNet(4, batch_norm=True), BLOCKS, 4, [6, 6])
    torch.manual_seed(2)
    teacher = ConvNet(6)
    return GraftingDistiller(student, teacher, BLOCKS, **{"block_steps": 2, "net_steps": 2} | changes)


CASES = {"grafting": lambda: toys.Case(learner())}


def test_stages_follow_the_paper_step_by_step(tmp_path):
    """Written out: block by block, then two together, then all three, each with what surrounds it."""
    ours = learner(optimizer=sgd, block_steps=1, net_steps=1)
    net, out, into = (copy.deepcopy(part) for part in (ours.student.parts.network, ours.student.out, ours.student.into))
    teacher = copy.deepcopy(ours.teacher)
    batches = [torch.rand(6, 3, 28, 28) for _ in range(6)]

    def head(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return network.classifier(network.pool(network.conv[5](network.conv[4](x))).flatten(1))

    def block(network: nn.Module, x: torch.Tensor, number: int) -> torch.Tensor:
        return network.conv[2 * number + 1](network.conv[2 * number](x))

    mixes = [
        (lambda x: head(teacher, block(teacher, out[0](block(net, x, 0)), 1)), [net.conv[0], out[0]]),
        (lambda x: head(teacher, out[1](block(net, into[0](block(teacher, x, 0)), 1))), [into[0], net.conv[2], out[1]]),
        (lambda x: head(net, into[1](block(teacher, block(teacher, x, 0), 1))), [into[1], net.conv[4], net.classifier]),
        (
            lambda x: head(teacher, out[1](block(net, into[0](out[0](block(net, x, 0))), 1))),
            [net.conv[0], out[0], into[0], net.conv[2], out[1]],
        ),
    ]
    everything = lambda x: head(net, into[1](out[1](block(net, into[0](out[0](block(net, x, 0))), 1))))  # noqa: E731
    mixes += [(everything, [net, out, into])] * 2
    for x, (mix, learning) in zip(batches, mixes, strict=True):
        optimizer = sgd([parameter for module in learning for parameter in module.parameters()])
        loss = functional.mse_loss(mix(x), teacher(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    toys.trainer(tmp_path, max_epochs=1).fit(ours, toys.Loader(batches))
    found = ours.student
    for mine, theirs in ((net, found.parts.network), (out, found.out), (into, found.into)):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_who_is_not_in_the_mixed_network_does_not_move_by_momentum_either(tmp_path):
    ours = learner(block_steps=3, net_steps=3)
    first = ours.student.parts.network.conv[0][0].weight
    seen: list[torch.Tensor] = []
    step = ours.compute_losses
    ours.compute_losses = lambda batch: (seen.append(first.detach().clone()), step(batch))[1]  # type: ignore
    toys.trainer(tmp_path, max_steps=11).fit(ours, toys.data())
    moved = [not torch.equal(one, other) for one, other in pairwise(seen)]
    assert moved == [True] * 3 + [False] * 6 + [True]


def test_the_deployed_network_is_the_whole_student():
    ours = learner()
    images = torch.rand(3, 3, 28, 28)
    ours.student.eval()
    whole = ours.student.run(images, 0, 3)
    assert torch.equal(ours(images), whole)
    assert {*ours.student.members(0, 3)} == {*ours.student.parameters()}
    network = ours.teacher
    torch.testing.assert_close(Blocks(network, BLOCKS)(images), network(images))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("last", [["pool", "flatten", "classifier"], ["flatten", "classifier"]])
def test_the_student_alone_takes_the_1x1_convolutions_in(batch_norm, last):
    torch.manual_seed(0)
    network = ConvNet(4, batch_norm=batch_norm)
    blocks = [["conv.0", "conv.1"], ["conv.2", "conv.3", "conv.4", "conv.5"], last]
    if "pool" not in last:
        blocks[1].append("pool")
    student = GraftedStudent(network, blocks, 4, 6)
    for layer in [*student.out, *student.into]:
        nn.init.normal_(layer.bias)
    student(torch.rand(8, 3, 28, 28))
    merged = student.eval().merged()
    images = torch.rand(3, 3, 28, 28)
    torch.testing.assert_close(merged(images), student(images))
    assert merged.state_dict().keys() == network.state_dict().keys()


def test_layers_that_cannot_absorb_a_1x1_convolution_are_named():
    blocks = [["conv.0"], ["conv.1", "conv.2", "conv.3", "conv.4", "conv.5", "pool", "flatten", "classifier"]]
    with pytest.raises(ValueError, match="ReLU comes first in"):
        GraftedStudent(ConvNet(4), blocks, 4, 6).merged()
    padded = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(ValueError, match="Conv2d comes first in"):
        GraftedStudent(padded, [["0"], ["1"]], 4, 6).merged()
    with pytest.raises(ValueError, match="has no convolution or linear layer"):
        GraftedStudent(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2)), [["0"], ["1"]], 4, 6).merged()


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="block_steps=0 and net_steps=2 must be at least 1"):
        learner(block_steps=0)
    with pytest.raises(ValueError, match="only the logits of a network"):
        learner(terms={"hint": Term(HintLoss(4, 6), student="conv.1", teacher="conv.1")})
    with pytest.raises(ValueError, match="teacher_blocks are 2 and the student's 3: pair them"):
        GraftingDistiller(GraftedStudent(ConvNet(4), BLOCKS, 4, 6), ConvNet(6), BLOCKS[1:])
    with pytest.raises(ValueError, match=r"student_channels=\[4\] must be 2"):
        GraftedStudent(ConvNet(4), BLOCKS, [4], 6)
    with pytest.raises(ValueError, match="must be at least two, each of at least one layer"):
        Blocks(ConvNet(4), [["conv"]])
    with pytest.raises(ValueError, match="blocks: ConvNet has no layer 'convolution'"):
        Blocks(ConvNet(4), [["convolution"], ["pool"]])
    student = GraftedStudent(ConvNet(4), BLOCKS, 4, 6)
    ours = GraftingDistiller(student, ConvNet(6), [*BLOCKS[:2], ["conv.4", "pool", "flatten", "classifier"]])
    ours.teacher.conv[4].bias.fill_(-1.0)  # so that the missing ReLU is seen
    with pytest.raises(ValueError, match="as a chain have another output than the teacher: name all layers"):
        ours.compute_losses(torch.rand(3, 3, 28, 28))

"""Networks cut into blocks, and a student whose blocks fit between those of its teacher."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


def check_blocks(network: nn.Module, blocks: list[list[str]]) -> None:
    """A ValueError if there are fewer than two blocks, one is empty, or the network has no such layer."""
    if len(blocks) < 2 or not all(blocks):
        raise UsageError(f"blocks={blocks} must be at least two, each of at least one layer")
    known = dict(network.named_modules())
    for name in (name for block in blocks for name in block):
        if name != "flatten" and not (name and name in known):
            raise UsageError(f"blocks: {type(network).__name__} has no layer {name!r}; {', '.join(known)[2:]}")


def run_blocks(network: nn.Module, blocks: list[list[str]], x: Tensor) -> Tensor:
    """What some blocks of a network, one after the other, make of the first one's input; see `Blocks`."""
    for block in blocks:
        for name in block:
            x = x.flatten(1) if name == "flatten" else network.get_submodule(name)(x)
    return x


class Blocks(nn.Module):
    """A network that runs as a chain of blocks, each of them some of its layers, one after the other.

    Args:
        network: The network; its layers are not copied.
        blocks: The dotted names of each block's layers, in the order in which they run; ``flatten`` stands for
            flattening all but the first dimension, which networks do without a layer.

    Raises:
        UsageError: There are fewer than two blocks, one is empty, or the network has no such layer.

    Example:
        >>> import torch
        >>> from kd_lightning.networks import ConvNet
        >>> parts = Blocks(ConvNet(4), [["conv"], ["pool", "flatten", "classifier"]])
        >>> parts.run(torch.zeros(2, 3, 28, 28), 0, 1).shape
        torch.Size([2, 4, 5, 5])
    """

    def __init__(self, network: nn.Module, blocks: list[list[str]]) -> None:
        super().__init__()
        check_blocks(network, blocks)
        self.network = network
        self.blocks = blocks

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """What the blocks from `start` to before `stop` make of the first one's input."""
        return run_blocks(self.network, self.blocks[start:stop], x)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
        return self.run(x, 0, len(self.blocks))


class GraftedStudent(nn.Module):
    """A student in blocks, with a 1x1 convolution to the teacher's width, and one back, wherever two of them meet.

    Any run of its blocks fits in the place of the teacher's; `merged` is the student alone.

    Chengchao Shen, Xinchao Wang, Youtan Yin, Jie Song, Sihui Luo, Mingli Song: Progressive Network Grafting for
    Few-Shot Knowledge Distillation. AAAI 2021 (arXiv:2012.04915).

    Args:
        network: The student.
        blocks: Its blocks, as for `Blocks`.
        student_channels: Channels of the student's maps where two blocks meet; one number if they are all alike.
        teacher_channels: Channels of the teacher's.

    Shapes:
        Input: that of the student; output: the student's logits.

    Raises:
        UsageError: As `Blocks`, or there are not as many numbers of channels as places where blocks meet.

    Example:
        >>> import torch
        >>> from kd_lightning.networks import ConvNet
        >>> network = GraftedStudent(ConvNet(4), [["conv"], ["pool", "flatten", "classifier"]], 4, 16)
        >>> network(torch.zeros(2, 3, 28, 28)).shape, network.out[0].weight.shape
        (torch.Size([2, 10]), torch.Size([16, 4, 1, 1]))
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: list[list[str]],
        student_channels: int | list[int],
        teacher_channels: int | list[int],
    ) -> None:
        super().__init__()
        self.parts = Blocks(network, blocks)
        cuts = len(blocks) - 1
        sides: list[list[int]] = []
        for side, given in (("student", student_channels), ("teacher", teacher_channels)):
            sides.append(given if isinstance(given, list) else [given] * cuts)
            if len(sides[-1]) != cuts:
                raise UsageError(f"{side}_channels={given} must be {cuts}, for so often two of the blocks meet")
        self.out = nn.ModuleList(nn.Conv2d(ours, theirs, kernel_size=1) for ours, theirs in zip(*sides, strict=True))
        self.into = nn.ModuleList(nn.Conv2d(theirs, ours, kernel_size=1) for ours, theirs in zip(*sides, strict=True))
        for layer in [*self.out, *self.into]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """What the blocks from `start` to before `stop` make of the teacher's map there, as a map of the teacher's."""
        for block in range(start, stop):
            x = self.parts.run(self.into[block - 1](x) if block else x, block, block + 1)
            x = self.out[block](x) if block < len(self.out) else x
        return x

    def members(self, start: int, stop: int) -> list[nn.Parameter]:
        """The parameters that `run` uses."""
        network = self.parts.network
        layers = [network.get_submodule(n) for block in self.parts.blocks[start:stop] for n in block if n != "flatten"]
        layers += [*self.into][max(start - 1, 0) : stop - 1] + [*self.out][start:stop]
        return [parameter for layer in layers for parameter in layer.parameters()]

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The student without 1x1 convolutions: a copy whose layers have taken them in, and which computes the same.

        Raises:
            UsageError: Something that is not linear, or a convolution with padding, comes first in a block.
        """
        network = copy.deepcopy(self.parts.network)
        for out, into, block in zip(self.out, self.into, self.parts.blocks[1:], strict=True):
            first, last = cast("nn.Conv2d", out), cast("nn.Conv2d", into)
            assert first.bias is not None
            assert last.bias is not None
            mixing = last.weight.flatten(1) @ first.weight.flatten(1)
            shift = last.weight.flatten(1) @ first.bias + last.bias
            layer = _first_linear(network, block)
            channels = layer.weight.unflatten(1, (len(mixing), -1))  # a flattened map has all positions of a channel
            moved = torch.einsum("oc...,c->o...", channels, shift).flatten(1).sum(dim=1)
            layer.bias = nn.Parameter(moved if layer.bias is None else layer.bias + moved)
            layer.weight = nn.Parameter(
                torch.einsum("om...,mc->oc...", channels, mixing).reshape(layer.weight.shape),
                layer.weight.requires_grad,
            )
        return network

    def forward(self, x: Any) -> Tensor:
        """Logits."""
        return self.run(x, 0, len(self.parts.blocks))


def _first_linear(network: nn.Module, block: list[str]) -> nn.Conv2d | nn.Linear:
    """The layer of a block that takes in what comes before it; averages in front of it do not mind."""
    for layer in (network.get_submodule(name) for name in block if name != "flatten"):
        for leaf in layer.modules():
            if isinstance(leaf, nn.Linear) or (
                isinstance(leaf, nn.Conv2d) and leaf.groups == 1 and not any(leaf.padding)
            ):
                return leaf
            if not isinstance(leaf, nn.Sequential | nn.AdaptiveAvgPool2d):
                raise UsageError(
                    f"blocks: {type(leaf).__name__} comes first in {block}, and takes no 1x1 convolution in: begin a "
                    "block with a convolution without padding, or a linear layer"
                )
    raise UsageError(f"blocks: {block} has no convolution or linear layer to take a 1x1 convolution in")

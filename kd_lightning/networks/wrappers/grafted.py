"""Networks divided into blocks, and a student whose blocks can replace those of its teacher."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_lightning.core.errors import UsageError


def check_blocks(network: nn.Module, blocks: list[list[str]]) -> None:
    """Check that there are at least two blocks, none of them empty, and that the network has all of their layers."""
    if len(blocks) < 2 or not all(blocks):
        raise UsageError(f"blocks={blocks} must be at least two, each of at least one layer")
    known = dict(network.named_modules())
    for name in (name for block in blocks for name in block):
        if name != "flatten" and not (name and name in known):
            raise UsageError(f"blocks: {type(network).__name__} has no layer {name!r}: use {', '.join(known)[2:]}")


def run_blocks(network: nn.Module, blocks: list[list[str]], x: Tensor) -> Tensor:
    """Run some blocks of a network one after the other, on the input of the first; see `Blocks`."""
    for block in blocks:
        for name in block:
            x = x.flatten(1) if name == "flatten" else network.get_submodule(name)(x)
    return x


class Blocks(nn.Module):
    """Run a network as a sequence of blocks, each a list of its layers.

    Args:
        network: The network; its layers are not copied.
        blocks: The dotted names of each block's layers, in the order in which they run; ``flatten`` is the function
            that flattens all but the first dimension, for which networks have no layer.

    Raises:
        UsageError: There are fewer than two blocks, one is empty, or a layer does not exist.

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
        """Run the blocks from `start` up to `stop` (exclusive) on the input of the first."""
        return run_blocks(self.network, self.blocks[start:stop], x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        return self.run(x, 0, len(self.blocks))


class GraftedStudent(nn.Module):
    """A student in blocks, with 1x1 convolutions to and from the teacher's width between successive blocks.

    Any sequence of its blocks can replace the same blocks of the teacher; `merged` returns the plain student.

    Chengchao Shen, Xinchao Wang, Youtan Yin, Jie Song, Sihui Luo, Mingli Song: Progressive Network Grafting for
    Few-Shot Knowledge Distillation. AAAI 2021 (arXiv:2012.04915).

    Args:
        network: The student.
        blocks: Its blocks; see `Blocks`.
        student_channels: Channels of the student's maps between blocks; one number if they are all equal.
        teacher_channels: Channels of the teacher's maps between blocks.

    Shapes:
        Input: that of the student; output: the student's logits.

    Raises:
        UsageError: The blocks are invalid (see `Blocks`), or there is not one number of channels between each two.

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
                raise UsageError(f"{side}_channels={given} must be {cuts} numbers, one between each two blocks")
        self.out = nn.ModuleList(nn.Conv2d(s, t, kernel_size=1) for s, t in zip(*sides, strict=True))
        self.into = nn.ModuleList(nn.Conv2d(t, s, kernel_size=1) for s, t in zip(*sides, strict=True))
        for layer in [*self.out, *self.into]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Run the blocks from `start` up to `stop` (exclusive); input and output have the teacher's width."""
        for block in range(start, stop):
            x = self.parts.run(self.into[block - 1](x) if block else x, block, block + 1)
            x = self.out[block](x) if block < len(self.out) else x
        return x

    def members(self, start: int, stop: int) -> list[nn.Parameter]:
        """Return the parameters that `run` uses for the same blocks."""
        network = self.parts.network
        layers = [network.get_submodule(n) for block in self.parts.blocks[start:stop] for n in block if n != "flatten"]
        layers += [*self.into][max(start - 1, 0) : stop - 1] + [*self.out][start:stop]
        return [parameter for layer in layers for parameter in layer.parameters()]

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return a copy of the student with the 1x1 convolutions merged into its layers, which computes the same.

        Raises:
            UsageError: A block does not begin with a linear layer or a convolution without padding.
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
        """Return the logits, (N, C)."""
        return self.run(x, 0, len(self.parts.blocks))


def _first_linear(network: nn.Module, block: list[str]) -> nn.Conv2d | nn.Linear:
    """Return the block's first linear layer or convolution, which average pooling may precede."""
    for layer in (network.get_submodule(name) for name in block if name != "flatten"):
        for leaf in layer.modules():
            if isinstance(leaf, nn.Linear) or (
                isinstance(leaf, nn.Conv2d) and leaf.groups == 1 and not any(leaf.padding)
            ):
                return leaf
            if not isinstance(leaf, nn.Sequential | nn.AdaptiveAvgPool2d):
                raise UsageError(
                    f"blocks: {type(leaf).__name__} comes first in {block}, and cannot absorb a 1x1 convolution: begin "
                    "each block with a convolution without padding, or a linear layer"
                )
    raise UsageError(f"blocks: {block} has no convolution or linear layer to absorb a 1x1 convolution: add one")

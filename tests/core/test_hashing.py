from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from torch import nn

from kd_lightning.core.hashing import hash_tensors, weights_hash
from kd_lightning.networks import ConvNet, exclude_from_state_dict, freeze


def test_the_hash_written_out() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
        layer.bias.copy_(torch.tensor([0.5]))
    told = b"bias torch.float32 [1]\n" + b"\x00\x00\x00\x3f" + b"weight torch.float32 [1, 2]\n"
    told += b"\x00\x00\x80\x3f" + b"\x00\x00\x00\xc0"
    assert weights_hash(layer) == hashlib.sha256(told).hexdigest()


def test_memory_format_freezing_and_order_do_not_matter() -> None:
    network = ConvNet(width=4, batch_norm=True)
    before = weights_hash(network)
    assert weights_hash(copy.deepcopy(network).to(memory_format=torch.channels_last)) == before
    assert weights_hash(exclude_from_state_dict(freeze(copy.deepcopy(network)))) == before
    assert hash_tensors(dict(reversed(network.state_dict().items()))) == before


@pytest.mark.parametrize("name", ["conv.0.0.weight", "conv.0.1.running_var", "conv.4.1.num_batches_tracked"])
def test_one_bit_matters_wherever_it_is(name: str) -> None:
    network = ConvNet(width=4, batch_norm=True)
    before = weights_hash(network)
    network.state_dict()[name].view(-1).view(torch.uint8)[0] ^= 1
    assert weights_hash(network) != before


def test_names_shapes_dtypes_and_unsaved_buffers_matter() -> None:
    zeros = torch.zeros(4)
    others = [{"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.int()}, {"a": zeros[:2]}, {"a": zeros, "b": zeros[:0]}]
    assert len({hash_tensors(tensors) for tensors in [{"a": zeros}, *others]}) == 6
    network = nn.Module()
    network.register_buffer("mask", torch.zeros(2), persistent=False)
    assert weights_hash(network) != weights_hash(nn.Module())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.complex64])
def test_every_dtype_and_a_scalar(dtype: torch.dtype) -> None:
    scalar = torch.ones((), dtype=dtype)
    assert hash_tensors({"a": scalar}) != hash_tensors({"a": torch.zeros((), dtype=dtype)})

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from torch import Tensor

import kd_lightning.core.fingerprints as module
from kd_lightning.core.fingerprints import is_marked_immutable, mark_immutable, row_fingerprints

FORMATS = {
    1: "b",
    2: "h",
}  # of the integers that the bits of an element are read as; all others are read as two "i" or one


def weights(start: int, count: int) -> list[int]:
    """splitmix64, in Python's own integers."""
    state, numbers = start, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append((z ^ (z >> 31)) | 1)
    return numbers


def expected(row: Tensor, name: str = "") -> int:
    """The formula of the docstring, for one row."""
    content = bytes(row.contiguous().flatten().view(torch.uint8).tolist())
    code = FORMATS.get(row.dtype.itemsize, "i")
    integers = struct.unpack(f"<{len(content) // struct.calcsize(code)}{code}", content)
    kind = hashlib.sha256(f"{name} {row.dtype} {tuple(row.shape)}".encode()).digest()
    factors = weights(int.from_bytes(kind[:8], "big"), len(integers))
    total = sum(factor * integer for factor, integer in zip(factors, integers, strict=True)) % 2**64
    return total - 2**64 if total >= 2**63 else total


def values(dtype: torch.dtype, *shape: int) -> Tensor:
    """Any bits at all, NaN and infinity among them."""
    count = torch.Size(shape).numel() * dtype.itemsize
    content = torch.randint(2 if dtype == torch.bool else 256, (count,), generator=torch.Generator().manual_seed(0))
    return content.to(torch.uint8).view(dtype).view(shape)


DTYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4, 2)])
def test_it_is_the_sum_of_the_docstring(dtype, shape):
    rows = values(dtype, *shape)
    assert row_fingerprints(rows).tolist() == [expected(row) for row in rows]
    named = {"image": rows, "mask": values(torch.bool, 5, 2)}
    parts = [[expected(row, name) for row in part] for name, part in named.items()]
    wrapped = [(a + b + 2**63) % 2**64 - 2**63 for a, b in zip(*parts, strict=True)]
    assert row_fingerprints(named).tolist() == wrapped


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_memory_layout_and_other_rows_of_the_batch_do_not_matter(dtype):
    for channels in (1, 2, 3):
        wide = values(dtype, 6, 1, 4, 5).expand(-1, channels, -1, -1)
        truth = row_fingerprints(wide.contiguous())
        assert torch.equal(row_fingerprints(wide), truth)
        assert torch.equal(row_fingerprints(wide.contiguous(memory_format=torch.channels_last)), truth)
        assert torch.equal(row_fingerprints(wide.contiguous().transpose(2, 3).contiguous().transpose(2, 3)), truth)
        assert torch.equal(row_fingerprints(wide.flip(0)), truth.flip(0))
        assert torch.equal(row_fingerprints(wide[2:3]), truth[2:3])
        spread = values(dtype, 6, channels, 4, 10)[..., ::2]
        assert torch.equal(row_fingerprints(spread), row_fingerprints(spread.contiguous()))
    both = values(dtype, 6, 1, 1, 5).expand(-1, 3, 4, -1)
    assert torch.equal(row_fingerprints(both), row_fingerprints(both.contiguous()))


def test_other_devices_compute_the_same_by_other_means(monkeypatch):
    rows = values(torch.float32, 6, 1, 4, 5).expand(-1, 3, -1, -1)
    truth, plan = row_fingerprints(rows), module._plan
    monkeypatch.setattr(module, "_plan", lambda *arguments: plan(*arguments)._replace(on_cpu=False))
    assert torch.equal(row_fingerprints(rows), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_bit_of_a_row_can_change_without_notice(dtype):
    row = values(dtype, 1, 3, 4)
    bits = 1 if dtype == torch.bool else 8
    changed = row.expand(row.numel() * dtype.itemsize * bits, -1, -1).contiguous()
    for i, one in enumerate(changed.view(len(changed), -1).view(torch.uint8)):
        one[i // bits] ^= 1 << i % bits
    found = row_fingerprints(changed).tolist()
    assert len({*found, row_fingerprints(row).item()}) == len(found) + 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_augmentations_change_the_fingerprint(dtype):
    images = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round(decimals=1).to(dtype)
    images = images.expand(-1, 3, -1, -1)
    changes = [
        -images,
        2 * images,
        images / 2,
        images.flip(3),
        images.flip(2),
        images.roll(1, 3),
        images.mT,
        images + 1,
    ]
    for other in changes:
        assert (row_fingerprints(images) != row_fingerprints(other)).all()


def test_only_read_only_tensors_are_marked_immutable():
    index = torch.arange(4)
    dense, wide = torch.zeros(4, 3, 2), torch.zeros(4, 1, 2).expand(-1, 3, -1)
    for x in (dense, wide):
        mark_immutable(x, index)
    assert not is_marked_immutable(dense, index)
    assert is_marked_immutable(wide, index)
    with pytest.raises(RuntimeError, match="refers to a single memory location"):
        wide += 1
    for other in (wide + 0, wide.clone(), wide[:], wide.contiguous(), wide.double(), {"x": wide}, None):
        assert not is_marked_immutable(other, index)
    assert not is_marked_immutable(wide, torch.arange(4))
    index[0] = 2
    assert not is_marked_immutable(wide, index)


def test_inputs_without_rows_are_refused_in_one_line():
    refused = [
        (torch.tensor(1.0), "the input is not a tensor with rows, but Tensor"),
        ([torch.zeros(2)], "the input is not a tensor with rows, but list"),
        ({"text": ["a", "b"]}, "'text' of the inputs is not a tensor with rows, but list"),
        ({"image": torch.zeros(2, 3), "mask": torch.zeros(3, 3)}, r"inputs have \[2, 3\] rows"),
        ({}, r"inputs have \[\] rows"),
    ]
    for inputs, message in refused:
        with pytest.raises(ValueError, match=message) as caught:
            row_fingerprints(inputs)
        assert "\n" not in str(caught.value)

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term, UsageError
from kd_lightning.callbacks.mixed_rows import are_mixed
from kd_lightning.losses import DKDLoss, KDLoss
from tests import toys
from tests.callbacks import drop_in

SHAPES = [(8, 8), (4, 20), (6, 3, 8, 8), (5, 12, 9)]


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def next_rows(x: Tensor) -> Tensor:
    return x.roll(1, dims=0)


def cut_mix(x: Tensor) -> Tensor:
    mixed = x.clone()
    mixed[..., : x.shape[-1] // 2] = next_rows(x)[..., : x.shape[-1] // 2]
    return mixed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "change",
    [
        next_rows,
        lambda x: 0.6 * x + 0.4 * next_rows(x),
        lambda x: 0.99 * x + 0.01 * next_rows(x),
        cut_mix,
        lambda x: (next_rows(x) - 0.3) / 0.2,
        lambda x: torch.cat([x[:1], next_rows(x)[1:]]),
    ],
    ids=["permuted", "mixup", "a little", "cutmix", "permuted and normalised", "all but one"],
)
def test_rows_of_others_are_found(change, shape):
    assert are_mixed(change(rows(*shape)), rows(*shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "change",
    [
        torch.clone,
        lambda x: (x - 0.3) / 0.2,
        lambda x: x + 0.1 * torch.randn_like(x),
        lambda x: x.flip(-1),
        torch.relu,
        lambda x: x.roll(1, -1),
        lambda x: 0 * x,
        lambda x: x[:2],
        lambda x: torch.cat([x, x]),
    ],
    ids=["same", "normalised", "noise", "flipped", "rectified", "moved", "zeros", "fewer", "twice"],
)
def test_a_change_of_each_row_by_itself_is_no_mixture(change, shape):
    torch.manual_seed(0)
    assert not are_mixed(change(rows(*shape)), rows(*shape))


def test_an_erased_part_is_not_taken_for_the_empty_border_of_another_image():
    x = torch.zeros(4, 1, 8, 8)
    x[:, :, 2:6, 2:6] = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    erased = x.clone()
    erased[:, :, :, 4:] = 0
    assert not are_mixed(erased, x)


def test_token_ids_in_another_order_are_found():
    ids = torch.arange(12).view(4, 3)
    assert are_mixed(ids[[1, 0, 3, 2]], ids)
    assert not are_mixed(ids, ids)


class Mixes(drop_in.Theirs):
    """A step that changes the batch before its network gets it."""

    change: Any = staticmethod(torch.clone)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.backbone(self.change(batch[0])), batch[1])


def in_place(x: Tensor) -> Tensor:
    return x.copy_(next_rows(x).clone())


@pytest.mark.parametrize("change", [next_rows, lambda x: 0.7 * x + 0.3 * next_rows(x), in_place])
def test_labels_of_other_rows_are_refused_in_the_step(change, tmp_path):
    fit(tmp_path, change, KDLoss(3.0))  # which needs no label
    with pytest.raises(UsageError, match=r"student 'backbone' permuted or mixed rows .* term 'd' has the labels"):
        fit(tmp_path, change, DKDLoss())


@pytest.mark.parametrize("change", [torch.clone, lambda x: x / 2 - 1])
def test_a_step_that_keeps_the_rows_may_use_their_labels(change, tmp_path):
    fit(tmp_path, change, DKDLoss())


def fit(folder: Any, change: Any, loss: nn.Module) -> None:
    module = Mixes()
    module.change = change
    callback = drop_in.distillation(hint=False, terms={"d": Term(loss)})
    batch = rows(8, drop_in.FEATURES), torch.arange(8) % drop_in.CLASSES
    toys.trainer(folder, callback, max_epochs=1).fit(module, toys.Loader([batch]))

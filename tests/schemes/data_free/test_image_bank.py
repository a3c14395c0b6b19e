from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.schemes.data_free import image_bank
from kd_lightning.schemes.data_free.image_bank import ImageBank


def example() -> dict[str, Tensor]:
    return {"images": torch.zeros(1, 3, 4, 4), "targets": torch.zeros(1, dtype=torch.long)}


def rows(first: int, count: int = 4) -> dict[str, Tensor]:
    targets = torch.arange(first, first + count)
    return {"images": targets.float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4), "targets": targets}


def test_rounds_fill_it_in_order_and_the_rest_is_dropped():
    bank = ImageBank(10, 4, example())
    for number in range(3):
        bank.add_round(number, rows(4 * number))
    assert [bank.size_after(rounds) for rounds in range(5)] == [0, 4, 8, 10, 10]
    assert bank.column("targets").tolist() == list(range(10))
    assert bank.column("images")[:, 2, 1, 1].tolist() == list(range(10))
    assert bank.own_rows("targets", 1).tolist() == [4, 5, 6, 7]
    assert set(bank.state_dict()) == {"images", "targets"}


def test_the_rows_of_all_processes_are_stored_in_rank_order(monkeypatch):
    monkeypatch.setattr(image_bank, "world_size", lambda: 2)
    monkeypatch.setattr(image_bank, "rank", lambda: 1)
    monkeypatch.setattr(image_bank, "all_gather_with_grad", lambda value: torch.cat((value + 100, value)))
    bank = ImageBank(16, 4, example())
    for number in range(2):
        bank.add_round(number, rows(4 * number))
    assert bank.size_after(2) == 16
    assert bank.column("targets").tolist() == [100, 101, 102, 103, 0, 1, 2, 3, 104, 105, 106, 107, 4, 5, 6, 7]
    assert bank.own_rows("targets", 1).tolist() == [4, 5, 6, 7]

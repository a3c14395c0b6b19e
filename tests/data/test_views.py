from __future__ import annotations

import inspect

import pytest
import torch

from kd_lightning.data import EdgeMap, MNISTDataModule, PairedViewsDataModule, Rows


def data(**changes) -> PairedViewsDataModule:
    given = {"batch_size": 16, "train_size": 64, "val_size": 32}
    return PairedViewsDataModule(**{"modalities": {"edges": EdgeMap(), "rows": Rows()}} | given | changes)


def test_all_views_of_a_batch_are_of_the_same_digits():
    paired, plain = data(), MNISTDataModule(batch_size=16, train_size=64, val_size=32)
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    for loader in loaders:
        seen = next(iter(getattr(paired, loader)()))
        x, y, index = next(iter(getattr(plain, loader)()))
        assert torch.equal(seen["image"], x)
        assert torch.equal(seen["target"], y)
        assert torch.equal(seen["index"], index)
        assert torch.equal(seen["rows"], x[:, 0])
        assert torch.equal(seen["edges"], EdgeMap()(x))


def test_edges_are_those_of_naive_loops():
    image = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = [(-1, 1), (0, 2), (1, 1)]

    def at(i: int, j: int) -> float:
        return image[min(max(i, 0), 4), min(max(j, 0), 5)].item()

    expected = [
        [
            (
                sum(w * (at(i + d, j + 1) - at(i + d, j - 1)) for d, w in weights) ** 2
                + sum(w * (at(i + 1, j + d) - at(i - 1, j + d)) for d, w in weights) ** 2
            )
            ** 0.5
            / 4
            for j in range(6)
        ]
        for i in range(5)
    ]
    found = EdgeMap()(image.expand(2, 3, 5, 6))
    torch.testing.assert_close(found[1, 2], torch.tensor(expected, dtype=torch.float64))


def test_the_training_loader_has_a_state_to_be_found_on_its_class_and_the_others_have_none():
    """As Python 3.12 and later look for it, who do not ask the object."""
    given = data()
    for name in ("state_dict", "load_state_dict"):
        assert inspect.getattr_static(given.train_dataloader(), name, None) is not None
        assert inspect.getattr_static(given.test_dataloader(), name, None) is None
    loader = given.train_dataloader()
    next(iter(loader))
    again = data().train_dataloader()
    again.load_state_dict(loader.state_dict())
    assert again.state_dict() == {"position": 1}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a modality cannot be called image, target, which the batch has"):
        data(modalities={"image": Rows(), "target": Rows()})
    with pytest.raises(ValueError, match="shuffled='edge' is no modality; the nearest are edges"):
        data(shuffled="edge")

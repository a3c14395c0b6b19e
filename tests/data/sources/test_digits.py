from __future__ import annotations

import sys

import pytest
import torch
from sklearn.datasets import load_digits

from kd_lightning import UsageError
from kd_lightning.data import Digits, ResidentDataModule
from kd_lightning.data.sources import digits


@pytest.fixture
def unread():
    """Without what an earlier test has read, and without what this one will."""
    digits._read.cache_clear()
    yield
    digits._read.cache_clear()


def test_the_digits_are_scikit_learns_in_two_parts():
    train, test = Digits().train(), Digits().test()
    assert (len(train.labels), len(test.labels)) == (1297, 500)
    pixels, labels = load_digits(return_X_y=True)
    both = torch.cat((train.images, test.images)).flatten(1)
    assert (both.numpy() == pixels * 15).all()  # 0 to 16 become 0 to 240
    assert torch.cat((train.labels, test.labels)).tolist() == labels.tolist()


def test_they_are_trained_on_like_any_other():
    data = ResidentDataModule(Digits(), batch_size=10, train_size=100, val_size=200)
    assert next(iter(data.train_dataloader()))[0].shape == (10, 1, 8, 8)
    with pytest.raises(UsageError, match="train_size=None and val_size=5000 exceed the 1297 images"):
        ResidentDataModule(Digits())


def test_other_digits_are_refused(unread, monkeypatch):
    class Fewer:
        images, target = load_digits().images[:1000], load_digits().target[:1000]

    monkeypatch.setattr("sklearn.datasets.load_digits", Fewer)
    with pytest.raises(UsageError, match=r"1,000 images of 8 x 8 in 10 classes; expected 1,797 images of 8 x 8 in 10"):
        Digits().test()


def test_a_missing_package_is_named(unread, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"Digits needs scikit-learn: pip install 'kd-lightning\[graph\]'"):
        Digits().train()

from __future__ import annotations

from typing import Any

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.data import MNIST, DigitScenes, MNISTDataModule, ResidentDataModule
from kd_lightning.data.views.scenes import QUESTIONS, VOCABULARY


def data(task: Any = "vqa", shuffled: bool = False, **changes: Any) -> ResidentDataModule:
    given = {"batch_size": 16, "train_size": 64, "val_size": 32} | changes
    return ResidentDataModule(MNIST(), views=DigitScenes(task, shuffled), **given)


def answer(question: str, digits: list[int]) -> int:
    if "even" in question:
        return len([digit for digit in digits if digit in (0, 2, 4, 6, 8)])
    if "largest" in question or "smallest" in question:
        return sorted(digits)[-1 if "largest" in question else 0]
    return digits[("bottom" in question) * 2 + ("right" in question)]


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_a_scene_is_four_digits_and_the_answer_is_true_of_them(loader: str):
    batch = next(iter(getattr(data(), loader)()))
    plain = MNISTDataModule(batch_size=16, train_size=64, val_size=32, num_channels=1)
    x, y, index = next(iter(getattr(plain, loader)()))
    assert torch.equal(batch["index"], index)
    images = plain.test_set if loader == "test_dataloader" else plain.train_set
    part = {
        "train_dataloader": plain.split[0],
        "val_dataloader": plain.split[1],
        "test_dataloader": torch.arange(10_000),
    }
    labels = {image.numpy().tobytes(): images.labels[row] for row in part[loader] for image in images.images[row]}
    asked, met = set(), set()
    for n in range(len(y)):
        scene = batch["seen"]["scene"][n, 0]
        quarters = [scene[28 * top : 28 * top + 28, 28 * left : 28 * left + 28] for top in (0, 1) for left in (0, 1)]
        assert torch.equal(quarters[0], x[n, 0])
        found = [(quarter * 255).round().byte().numpy().tobytes() for quarter in quarters]
        digits = [labels[image].item() for image in found]  # each is of the sample's own part of the data
        met |= set(found[1:])
        assert batch["told"]["digits"][n].tolist() == digits
        question = " ".join(VOCABULARY[word] for word in batch["seen"]["question"][n].tolist()).strip()
        assert question in QUESTIONS
        asked.add(question)
        assert batch["target"][n].item() == answer(question, digits)
    assert len(asked) >= 5
    assert len(met) >= 20
    assert torch.equal(batch["told"]["question"], batch["seen"]["question"])


def test_a_scene_is_a_matter_of_its_sample_and_not_of_its_batch():
    kept = {}
    for size in (16, 4):
        loader = data(batch_size=size).train_dataloader()
        for _ in range(2):  # epochs
            for batch in loader:
                for n, row in enumerate(batch["index"].tolist()):
                    shown = torch.cat((batch["seen"]["scene"][n].flatten(), batch["seen"]["question"][n].float()))
                    assert torch.equal(kept.setdefault(row, shown), shown)
    assert len(kept) == 64


def test_a_caption_says_the_digits_in_the_order_of_reading():
    batch = next(iter(data("captioning").train_dataloader()))
    assert "question" not in batch["seen"]
    assert torch.equal(batch["target"], batch["told"]["digits"])


def test_a_shuffled_teacher_has_another_scene_in_training_only():
    plain, shuffled = (next(iter(data(shuffled=s).train_dataloader())) for s in (False, True))
    assert torch.equal(shuffled["told"]["digits"], plain["told"]["digits"].roll(1, dims=0))
    assert torch.equal(shuffled["seen"]["scene"], plain["seen"]["scene"])
    assert torch.equal(shuffled["target"], plain["target"])
    plain, shuffled = (next(iter(data(shuffled=s).test_dataloader())) for s in (False, True))
    assert torch.equal(shuffled["told"]["digits"], plain["told"]["digits"])


def test_a_scene_has_as_many_channels_as_its_images():
    grey, colour = (next(iter(data(num_channels=channels).train_dataloader())) for channels in (1, 3))
    assert torch.equal(colour["seen"]["scene"], grey["seen"]["scene"].expand(-1, 3, -1, -1))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="task='jokes' is neither 'vqa' nor 'captioning'"):
        DigitScenes("jokes")

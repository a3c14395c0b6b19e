from __future__ import annotations

import inspect
import itertools

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.data import MNIST, BatchViews, EdgeMap, MNISTDataModule, PairedViews, ResidentDataModule, RowSequence
from tests.data.shapes import Shapes


def data(modalities=None, shuffled=None, **changes) -> ResidentDataModule:
    views = PairedViews(modalities or {"edges": EdgeMap(), "rows": RowSequence()}, shuffled)
    given = {"num_channels": 3, "batch_size": 16, "train_size": 64, "val_size": 32}
    return ResidentDataModule(MNIST(), views=views, **given | changes)


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


def test_a_shuffled_modality_is_that_of_the_sample_before_in_training_alone():
    plain, shuffled = data(), data(shuffled="edges")
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader", "train_rows"):
        expected, found = (next(iter(getattr(module, loader)())) for module in (plain, shuffled))
        assert list(found) == list(expected) == ["image", "edges", "rows", "target", "index"]
        for name, value in expected.items():
            moved = loader == "train_dataloader" and name == "edges"
            assert torch.equal(found[name], value.roll(1, dims=0) if moved else value), (loader, name)


class Asked:
    """A view of samples that keeps what it was given."""

    def __init__(self) -> None:
        self.asked = []

    def of_samples(self, images, labels, index, test=False):
        self.asked.append((tuple(images.shape), labels, index, test))
        return index


def test_a_view_of_samples_is_given_their_labels_and_numbers_and_the_stage():
    view = Asked()
    module = data(modalities={"asked": view})
    for loader, test in (("train_dataloader", False), ("val_dataloader", False), ("test_dataloader", True)):
        batch = next(iter(getattr(module, loader)()))
        shape, labels, index, given = view.asked[-1]
        assert shape == tuple(batch["image"].shape)
        assert torch.equal(labels, batch["target"])
        assert torch.equal(index, batch["index"])
        assert torch.equal(index, batch["asked"])
        assert given is test


class Recorded(BatchViews):
    """Keeps the parts of the data that its batches are from."""

    def __init__(self) -> None:
        self.parts = []

    def __call__(self, batch, part):
        self.parts.append(part)
        return {"x": batch[0], "index": batch[2]}


def test_views_know_the_set_that_a_batch_is_from():
    views = Recorded()
    module = ResidentDataModule(source := Shapes(), batch_size=8, val_size=20, views=views)
    for loader, stage in (("train_dataloader", "train"), ("train_rows", "train"), ("val_dataloader", "val")):
        next(iter(getattr(module, loader)()))
        part = views.parts[-1]
        assert part.stage == stage
        assert torch.equal(part.data.images, source.train().images)
        assert torch.equal(part.rows, module.split[0 if stage == "train" else 1])
    next(iter(module.test_dataloader()))
    assert views.parts[-1].stage == "test"
    assert torch.equal(views.parts[-1].data.images, source.test().images)
    assert views.parts[-1].rows.tolist() == [*range(30)]
    assert module.example_input_array is None
    assert module.train_rows().num_rows == 180


@pytest.mark.parametrize("start", range(6))
def test_a_resume_at_any_batch_has_the_batches_of_an_uninterrupted_run(start):
    whole = data(augmentation=noise).train_dataloader()
    truth = [batch for _ in range(3) for batch in whole]
    resumed = data(augmentation=noise).train_dataloader()
    resumed.load_state_dict({"position": start})
    for batch, expected in zip(resumed, truth[start : start + 4], strict=True):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def noise(image: torch.Tensor) -> torch.Tensor:
    return image + torch.rand(1)


def test_two_ranks_split_the_batches_of_one_process():
    """Of modalities that are functions of a sample; shuffled pairs are a batch's own."""
    alone = {row: batch["edges"][n] for batch in data().train_rows() for n, row in enumerate(batch["index"].tolist())}
    shares = [[*data().train_rows(rank, 2, batch_size=10)] for rank in range(2)]
    assert [sum(len(batch["index"]) for batch in share) for share in shares] == [32, 32]
    for batch in itertools.chain(*shares):
        for edges, row in zip(batch["edges"], batch["index"].tolist(), strict=True):
            torch.testing.assert_close(edges, alone.pop(row), rtol=0, atol=1e-6)
    assert not alone


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="a modality cannot have the name image, target, a key of the batch"):
        PairedViews({"image": RowSequence(), "target": RowSequence()})
    with pytest.raises(UsageError, match="shuffled='edge' is not a modality; the nearest are edges"):
        data(shuffled="edge")

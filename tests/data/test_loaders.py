from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from kd_lightning.core.fingerprints import is_marked_immutable
from kd_lightning.data import EvaluationLoader, LabeledImages, TrainLoader
from kd_lightning.data.augmentation import view_seeds

GENERATOR = torch.Generator().manual_seed(0)
DATA = LabeledImages(
    torch.randint(256, (100, 1, 4, 4), dtype=torch.uint8, generator=GENERATOR),
    torch.randint(10, (100,), generator=GENERATOR),
)


def rows(count: int) -> Tensor:
    """Not the first ones, so that a row and its place cannot be mistaken for each other."""
    return torch.arange(100 - count, 100)


def noise(image: Tensor) -> Tensor:
    return image + torch.rand(1)


def train_loader(count: int = 23, batch_size: int = 4, seed: int = 0, **arguments) -> TrainLoader:
    return TrainLoader(DATA, rows(count), batch_size, seed, **{"num_channels": 3} | arguments)


def indices(loader) -> list[list[int]]:
    return [index.tolist() for _, _, index in loader]


@pytest.mark.parametrize("loader", [train_loader(), EvaluationLoader(DATA, rows(23), 4, num_channels=3)])
def test_a_batch_is_the_images_and_labels_of_its_rows(loader):
    for x, y, index in loader:
        assert x.dtype == torch.float32
        assert torch.equal(x, torch.stack([DATA.images[row].float() / 255 for row in index]).repeat(1, 3, 1, 1))
        assert y.tolist() == [int(DATA.labels[row]) for row in index]
        assert x.stride(1) == 0  # three channels, one of them in memory


def test_channels():
    (x, _, _) = next(iter(train_loader(num_channels=1)))
    assert x.shape == (4, 1, 4, 4)


# ---- the order


def test_an_epoch_is_one_pass_without_the_incomplete_batch():
    loader = train_loader(count=23, batch_size=4)
    batches = indices(loader)
    assert [len(batch) for batch in batches] == [4] * len(loader) == [4] * 5
    seen = list(itertools.chain(*batches))
    assert len(set(seen)) == 20
    assert set(seen) < set(rows(23).tolist())


def test_drop_last_false_gives_the_rest_as_a_smaller_batch():
    batches = indices(train_loader(count=23, batch_size=4, drop_last=False))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert sorted(itertools.chain(*batches)) == rows(23).tolist()


def test_epochs_and_seeds_differ_and_repeat_themselves():
    loader, again = train_loader(), train_loader()
    epochs = [indices(loader) for _ in range(3)]
    assert epochs == [indices(again) for _ in range(3)]
    orders = [*epochs, *(indices(train_loader(seed=seed)) for seed in (1, 2))]
    assert all(first != second for first, second in itertools.combinations(orders, 2))


@pytest.mark.parametrize("steps_per_epoch", [1, 5, 6, 17, 40])
def test_steps_per_epoch_draws_over_whole_reshuffled_passes(steps_per_epoch):
    loader = train_loader(count=23, batch_size=4, steps_per_epoch=steps_per_epoch)
    batches = indices(loader)
    assert [len(batch) for batch in batches] == [4] * len(loader) == [4] * steps_per_epoch
    seen = list(itertools.chain(*batches))
    passes = [seen[start : start + 23] for start in range(0, len(seen), 23)]
    for whole in passes[:-1]:
        assert sorted(whole) == rows(23).tolist()
    assert len(set(passes[-1])) == len(passes[-1])
    assert len({tuple(whole) for whole in passes}) == len(passes)


def test_fifteen_hundred_steps_on_a_hundred_images_are_one_epoch():
    batches = indices(train_loader(count=100, batch_size=64, steps_per_epoch=1500))
    assert len(batches) == 1500
    assert set(torch.tensor(batches).flatten().bincount().tolist()) == {960}


@pytest.mark.parametrize("arguments", [{}, {"drop_last": False}, {"steps_per_epoch": 9}, {"num_augmented_views": 2}])
@pytest.mark.parametrize("start", range(0, 20, 3))
def test_the_stream_resumes_at_any_batch(start, arguments):
    """With a fresh loader, whose past is another: the order is a function of the position alone."""
    whole = train_loader(augmentation=noise, **arguments)
    truth = [batch for _ in range(5) for batch in whole][start : start + len(whole)]
    done = train_loader(augmentation=noise, completed_batches=lambda: start, **arguments)
    loaded = train_loader(augmentation=noise, **arguments)
    loaded.load_state_dict({"position": start})
    for loader in (done, loaded):
        assert loader.state_dict() == {"position": start}
        for given, expected in zip(loader, truth, strict=True):
            assert all(torch.equal(*pair) for pair in zip(given, expected, strict=True))
    assert loaded.state_dict() == {"position": start + len(whole)}


# ---- the augmentation


def test_augmentation_is_drawn_for_each_image_and_epoch():
    loader = train_loader(augmentation=noise)
    shifts = []
    for _ in range(2):
        for x, _, index in loader:
            shift = x[:, :1] - DATA.images[index] / 255
            assert torch.allclose(shift, shift.mean((1, 2, 3), keepdim=True).expand_as(shift), atol=1e-6)
            shifts += shift.mean((1, 2, 3)).tolist()
    assert len({round(shift, 5) for shift in shifts}) == len(shifts) == 40


def test_augmentation_changes_neither_the_order_nor_the_default_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert indices(train_loader(augmentation=noise)) == indices(train_loader())
    assert torch.equal(torch.rand(3), expected)


def test_augmentation_may_change_size_and_channels():
    x, _, _ = next(iter(train_loader(augmentation=lambda image: image[:, :3].repeat(3, 1, 1))))
    assert x.shape == (4, 3, 3, 4)


def test_draws_depend_on_seed_epoch_and_position():
    """Written out: published runs are repeated by these numbers."""
    for seed, epoch in ((0, 0), (0, 3), (5, 1)):
        generator = torch.Generator().manual_seed(random.Random(f"{seed} {epoch}").getrandbits(63))
        order = torch.randperm(23, generator=generator)
        seeds = torch.randint(2**62, (20,), generator=generator).tolist()
        loader = train_loader(seed=seed, augmentation=noise, completed_batches=lambda epoch=epoch: epoch * 5)
        for place, (x, _, index) in enumerate(loader):
            assert torch.equal(index, rows(23)[order[4 * place : 4 * place + 4]])
            for image, row, number in zip(x, index, seeds[4 * place : 4 * place + 4], strict=True):
                drawn = torch.rand(1, generator=torch.Generator().manual_seed(number))
                assert torch.equal(image[:1], DATA.images[row] / 255 + drawn)


def test_a_batch_is_marked_immutable_where_it_is_a_function_of_its_rows_and_cannot_be_written_into():
    for arguments, marked in (({}, True), ({"num_channels": 1}, False), ({"augmentation": noise}, False)):
        for x, _, index in train_loader(**arguments):
            assert is_marked_immutable(x, index) == marked


# ---- views


def pixels(loader) -> dict[int, Tensor]:
    """Each row's image, of which there must be one."""
    found: dict[int, Tensor] = {}
    for x, _, index in loader:
        for row, image in zip(index.tolist(), x, strict=True):
            assert torch.equal(found.setdefault(row, image), image)
    return found


def alike(first: dict[int, Tensor], second: dict[int, Tensor]) -> set[bool]:
    assert first.keys() & second.keys()
    return {torch.equal(first[row], second[row]) for row in first.keys() & second.keys()}


@pytest.mark.parametrize("views", [1, 2, 3])
def test_an_epoch_shows_one_view_of_each_row_and_the_views_take_turns(views):
    loader = train_loader(augmentation=noise, num_augmented_views=views)
    epochs = [pixels(loader) for _ in range(2 * views + 1)]
    for (i, first), (j, second) in itertools.combinations(enumerate(epochs), 2):
        assert alike(first, second) == {i % views == j % views}
    shifts = [float(image.mean() - DATA.images[row].float().mean() / 255) for row, image in epochs[0].items()]
    assert len({round(shift, 5) for shift in shifts}) == len(shifts)


def test_a_view_depends_on_the_seed_and_the_row_alone():
    """Neither on the batches, the order, the epoch's length, the processes, nor on which other rows there are."""
    truth = pixels(train_loader(augmentation=noise, num_augmented_views=2))
    others = [
        train_loader(augmentation=noise, num_augmented_views=2, batch_size=7),
        train_loader(augmentation=noise, num_augmented_views=2, steps_per_epoch=17),
        train_loader(augmentation=noise, num_augmented_views=2, drop_last=False),
        train_loader(augmentation=noise, num_augmented_views=2, count=60),
        train_loader(augmentation=noise, num_augmented_views=5),
        train_loader(augmentation=noise, num_augmented_views=2, rank=1, world_size=2),
    ]
    for other in others:
        assert alike(truth, pixels(other)) == {True}
    assert alike(truth, pixels(train_loader(augmentation=noise, num_augmented_views=2, seed=1))) == {False}
    assert alike(truth, pixels(train_loader(augmentation=noise))) == {False}


def test_views_change_neither_the_order_nor_images_without_an_augmentation():
    loader = train_loader()
    plain = [batch for _ in range(3) for batch in loader]
    for arguments in ({"num_augmented_views": 2}, {"num_augmented_views": 2, "augmentation": noise}):
        loader = train_loader(**arguments)
        for (x, _, index), (original, _, expected) in zip([b for _ in range(3) for b in loader], plain, strict=True):
            assert torch.equal(index, expected)
            assert torch.equal(x, original) == ("augmentation" not in arguments)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
def test_all_rows_can_be_seen_in_a_view(rank, world_size):
    shown = train_loader(augmentation=noise, num_augmented_views=3, drop_last=False)
    for view in range(3):
        truth = pixels(shown)
        loader = EvaluationLoader(DATA, rows(23), 4, 3, rank, world_size, noise, view_seeds(0, view, len(DATA.labels)))
        found = pixels(loader)
        assert alike(truth, found) == {True}
        assert len(found) == loader.num_rows == sum(len(index) for index in loader.indices)
        assert len(found) == 23 if world_size == 1 else 7 <= len(found) <= 8


# ---- several processes


@pytest.mark.parametrize("arguments", [{}, {"steps_per_epoch": 7}, {"num_augmented_views": 2}])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_batches_that_one_process_would_see(world_size, arguments):
    """Augmented pixels included; equally many batches of one size, nothing twice, nothing missing."""
    alone = train_loader(count=50, batch_size=12, augmentation=noise, **arguments)
    shares = [
        train_loader(50, 12 // world_size, augmentation=noise, rank=rank, world_size=world_size, **arguments)
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {len(alone)}
    for whole, *parts in zip(alone, *shares, strict=True):
        assert {len(x) for x, _, _ in parts} == {12 // world_size}
        for expected, given in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(given), expected)


@pytest.mark.parametrize("batch_size", [1000, 16, 10, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_gives_each_row_once_and_each_rank_equally_many_batches(batch_size, world_size):
    shares = [indices(EvaluationLoader(DATA, rows(77), batch_size, 3, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    sizes = {len(batch) for share in shares for batch in share}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    assert sorted(itertools.chain(*itertools.chain(*shares))) == rows(77).tolist()


def test_two_ranks_share_77_rows_unevenly():
    loaders = [EvaluationLoader(DATA, rows(77), 1000, rank=rank, world_size=2) for rank in range(2)]
    assert [sum(len(y) for _, y, _ in loader) for loader in loaders] == [39, 38]


def test_alone_evaluation_is_in_order():
    assert list(itertools.chain(*indices(EvaluationLoader(DATA, rows(77), 10)))) == rows(77).tolist()


# ---- what is refused


@pytest.mark.parametrize(("batch_size", "world_size"), [(24, 1), (12, 2)])
def test_fewer_rows_than_a_global_batch_are_refused(batch_size, world_size):
    message = rf"train_size=23 .*batch_size={batch_size} x {world_size} processes\).*steps_per_epoch"
    with pytest.raises(ValueError, match=message):
        train_loader(23, batch_size, world_size=world_size)
    assert len(train_loader(23, batch_size, world_size=world_size, steps_per_epoch=3)) == 3


def test_unequal_last_batches_are_refused():
    with pytest.raises(
        ValueError, match="drop_last=False leaves a last batch of 7 images, unequal shares for 2 processes"
    ):
        train_loader(23, 4, world_size=2, drop_last=False)
    assert [len(batch) for batch in indices(train_loader(22, 4, world_size=2, drop_last=False))] == [4, 4, 3]


def test_too_few_rows_for_the_processes_are_refused():
    with pytest.raises(
        ValueError, match="3 rows cannot be shared by 4 processes in batches of 10: raise eval_batch_size"
    ):
        EvaluationLoader(DATA, rows(3), 10, world_size=4)

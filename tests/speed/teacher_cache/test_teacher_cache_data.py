"""Data modules of others under a `TeacherCache`, and those that it refuses."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import nn

from kd_lightning import OfflineDistiller, Term
from kd_lightning.callbacks import TeacherCache, TeacherFreezing
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import FeatureMSELoss, KDLoss
from tests import toys
from tests.speed.teacher_cache.runs import Counting, Halved, augmented, data, fit, learner

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Texts(LightningDataModule):
    """Batches are mappings, and there is no more in it than the cache asks for."""

    training_is_random = False

    def __init__(self, **changes) -> None:
        super().__init__()
        self.batches = toys.Loader(
            [
                {
                    "words": torch.randint(9, (8, 5), generator=torch.Generator().manual_seed(i)),
                    "mask": torch.rand(8, 5, generator=torch.Generator().manual_seed(i)) > 0.3,
                    "label": torch.arange(8),
                    "index": torch.arange(8, dtype=torch.int32) + 8 * i,
                    **{name: value(i) for name, value in changes.items()},
                }
                for i in range(3)
            ]
        )

    def train_dataloader(self):
        return self.batches

    def train_rows(self, rank, world_size, batch_size):
        return reversed(self.batches.batches)


class Reader(nn.Module):
    """Logits of each text, or of each of its words, which lie before or behind the texts."""

    def __init__(self, seed: int, pools: bool = True, transposes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.each = nn.Embedding(9, 10), nn.Identity()
        self.pools, self.transposes, self.calls = pools, transposes, 0

    def forward(self, words, mask):
        self.calls += 1
        shown = self.words(words) * mask.unsqueeze(2)
        each = self.each(shown.transpose(0, 1) if self.transposes else shown)
        return {"logits": shown.mean(dim=1) if self.pools else each}


def reader(**changes) -> OfflineDistiller:
    terms = {"kd": Term(KDLoss(3.0)), "each": Term(FeatureMSELoss(), student="each", teacher="each")}
    return OfflineDistiller(Reader(0, **changes), Reader(1, **changes), terms, lambda p: torch.optim.SGD(p, lr=1.0))


def test_a_data_module_of_anyones_whose_batches_are_mappings(tmp_path):
    live, cached = reader(), reader()
    truth = fit(tmp_path, live, datamodule=Texts())
    weights = fit(tmp_path, cached, TeacherCache(tmp_path / "cache"), datamodule=Texts())
    assert not toys.same(truth, toys.weights(reader()))
    assert toys.same(weights, truth)
    assert (live.teacher.calls, cached.teacher.calls) == (9, 6)
    again = reader()
    assert toys.same(fit(tmp_path, again, TeacherCache(tmp_path / "cache"), datamodule=Texts()), truth)
    assert again.teacher.calls == 3


def longer(i: int) -> torch.Tensor:
    return torch.ones(8, 5 + i, dtype=torch.int64)


@pytest.mark.parametrize(
    ("module", "changes", "complaint"),
    [
        (lambda: reader(transposes=True), {}, r"the teacher's each is \(5, 8, 10\) for 8 rows, not one entry a row"),
        (
            lambda: reader(pools=False),
            {"words": longer, "mask": longer},
            r"the teacher's \w+ is \(7, 10\) for some rows and \(6, 10\) for others: bring all inputs to one size",
        ),
        (reader, {"words": lambda _: ["a"] * 8}, "'words' of the inputs is not a tensor with rows, but list"),
        (reader, {"mask": lambda _: torch.ones(1, 5)}, r"inputs have \[8, 1\] rows"),
    ],
)
def test_what_is_no_table_is_refused(module, changes, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint) as refusal:
        fit(tmp_path, module(), TeacherCache(), datamodule=Texts(**changes))
    assert "\n" not in str(refusal.value)


class Unsteady(MNISTDataModule):
    """Gives other rows each time that they are walked over."""

    changes = None

    def train_rows(self, rank=0, world_size=1, batch_size=None, view=0):
        self.walks = getattr(self, "walks", -1) + 1
        return self.changes([*super().train_rows(rank, world_size, batch_size, view)], self.walks)


@pytest.mark.parametrize(
    "changes",
    [
        lambda batches, walk: batches[walk % 2 :] + batches[: walk % 2],  # another order
        lambda batches, walk: batches[: 3 - walk],  # less
        lambda batches, walk: [*batches, *batches[:walk]],  # more
    ],
)
def test_rows_that_are_others_each_time_are_refused(changes, tmp_path):
    datamodule = augmented(kind=Unsteady)
    datamodule.changes = changes
    with pytest.raises(ValueError, match=r"train_rows\(\) returns other rows or another order each time"):
        fit(tmp_path, learner(), TeacherCache(), datamodule=datamodule)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"memory_limit_mib": 0}, "memory_limit_mib=0 must be above 0"),
        ({"memory_limit_mib": float("nan")}, "memory_limit_mib=nan must be above 0"),
        ({"precision": "fp8"}, "precision='fp8' must be .trainer. or .bf16."),
    ],
)
def test_a_bad_argument_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        TeacherCache(**arguments)


class WithoutIndex(MNISTDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[:2]


def on_parameters():
    weights = Term(FeatureMSELoss(), student="6.weight", teacher="network.6.weight", target=None)
    return {"kd": Term(KDLoss()), "weights": weights}


def of_the_batch():
    module = learner()
    norm = module.teacher.network[3]
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return module


@pytest.mark.parametrize(
    ("module", "datamodule", "callbacks", "complaint"),
    [
        (learner, lambda: data(augmentation=toys.Noise()), [], "training inputs are random.*augmentation to null"),
        (
            lambda: learner(on_parameters()),
            data,
            [],
            r"cannot cache terms on teacher parameters \(network\.6\.weight\)",
        ),
        (of_the_batch, data, [], "BatchNorm has no running statistics"),
        (toys.classifier, data, [], "Classifier has no frozen teacher whose inputs are rows of the data"),
        (learner, lambda: toys.Loader([*data().train_dataloader()]), [], r"no train_rows\(\)"),
        (learner, lambda: data(WithoutIndex), [], "batches have target and no `index`"),
        (learner, lambda: data(augmentation=toys.Noise()), [], "data's `num_augmented_views` to a number"),
        (learner, data, [TeacherFreezing(unfreeze_at=1)], "the teacher is not frozen"),
    ],
)
def test_what_a_look_up_cannot_stand_in_for_is_refused(module, datamodule, callbacks, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint) as refusal:
        fit(tmp_path, module(), *callbacks, TeacherCache(), datamodule=datamodule())
    assert "\n" not in str(refusal.value)


def test_a_pass_in_bfloat16_is_refused_where_it_would_not_be_one(tmp_path):
    with pytest.raises(ValueError, match="precision='bf16' cannot autocast a teacher in 64-true"):
        fit(tmp_path, learner(), TeacherCache(precision="bf16"), precision="64-true")


class Stops(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        assert pl_module.teacher_source is not None
        raise RuntimeError("stop")


def test_the_teacher_is_back_in_its_place_when_the_fit_is_over(tmp_path):
    module = learner()
    fit(tmp_path, module, TeacherCache(), max_epochs=1)
    assert module.teacher_source is None
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, module, TeacherCache(), Stops(), max_epochs=1)
    assert module.teacher_source is None


def test_a_schemes_own_way_to_watch_its_teacher_is_what_is_cached(tmp_path):
    def halved():
        return Halved(toys.network(seed=1), Counting(), toys.terms(), lambda p: torch.optim.SGD(p, lr=0.1))

    truth, weights = fit(tmp_path, halved()), fit(tmp_path, halved(), TeacherCache())
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)

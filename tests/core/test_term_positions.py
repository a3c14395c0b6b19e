"""Which position of an output is compared with which label: shifted ones, those that no loss needs, and none at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.callbacks import Distillation
from kd_lightning.losses import (
    BinaryTaskLoss,
    DKDLoss,
    FeatureMSELoss,
    KDLoss,
    RKDLoss,
    TaskLoss,
    TfKDLoss,
    WSLDLoss,
    kd_loss,
)
from tests import toys
from tests.ranks import run_two, two_processes


class Language(nn.Module):
    """Token ids (N, L) to logits of the next token (N, L, C)."""

    def __init__(self, width: int = 4, tokens: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(tokens, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(input_ids))[0])


def pixels(width: int = 4, seed: int = 0, stride: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1, stride=stride), nn.ReLU(), nn.Conv2d(width, 3, 1))


class Host(LightningModule):
    """Someone's own module, whose loss does not depend on the batch's labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        return 0 * self.backbone(x).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def both(student: nn.Module, teacher: nn.Module, terms: dict[str, Term], batch: Any, folder: Path) -> list[Any]:
    """The losses of one batch, of a scheme and of the drop-in; a task term has no place in the latter."""
    found = OfflineDistiller(student, teacher, terms).compute_losses(batch)
    trainer = toys.trainer(folder, max_steps=1)
    trainer.callbacks.append(Distillation("backbone", teacher, terms))
    trainer.fit(Host(student), toys.Loader([batch]))
    return [
        {name: value.item() for name, value in found.items()},
        {name: trainer.callback_metrics[f"train/{name}"].item() for name in terms},
    ]


# ---- the labels of a causal language model


def conversation() -> dict[str, Tensor]:
    ids = torch.tensor([[1, 2, 3, 4, 5], [2, 4, 1, 0, 0]])
    labels = ids.clone()
    labels[:, :2] = -100  # the prompt
    labels[1, 3:] = -100  # padding
    return {"input_ids": ids, "labels": labels}


def test_position_t_predicts_the_label_of_the_next_in_task_distillation_and_evaluation(tmp_path):
    batch, student, teacher = conversation(), Language(), Language(8, seed=1)
    terms = {
        "task": Term(TaskLoss(), teacher=None, target="labels", shift=1),
        "kd": Term(KDLoss(2.0), target="labels", shift=1),
    }
    logits, shown, labels = student(batch["input_ids"])[:, :-1], teacher(batch["input_ids"])[:, :-1], batch["labels"]
    kept = labels[:, 1:] != -100
    nll = functional.cross_entropy(logits[kept], labels[:, 1:][kept]).item()
    wanted = {"task": nll, "kd": kd_loss(logits[kept], shown[kept], 2.0).item()}
    for found in both(student, teacher, terms, batch, tmp_path):
        assert found == pytest.approx(wanted, abs=1e-6)  # of float32 sums
    (measured,) = toys.trainer(tmp_path).validate(
        OfflineDistiller(student, teacher, terms), toys.Loader([batch]), verbose=False
    )
    right = (student(batch["input_ids"])[:, :-1].argmax(-1) == labels[:, 1:])[kept]
    assert measured["val/nll"] == pytest.approx(nll)
    assert measured["val/acc"] == pytest.approx(right.float().mean().item())


def test_a_mask_is_shifted_with_the_labels_and_without_either_every_position_counts():
    batch, student, teacher = conversation(), Language(), Language(8, seed=1)
    s, t = student(batch["input_ids"]), teacher(batch["input_ids"])
    mask = batch["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    term = Term(KDLoss(2.0), target=None, mask="attention_mask", shift=1)
    kept = mask[:, 1:] != 0
    torch.testing.assert_close(
        term({"logits": s}, {"logits": t}, batch), kd_loss(s[:, :-1][kept], t[:, :-1][kept], 2.0)
    )
    features = Term(FeatureMSELoss(), student="h", teacher="h", target=None, mask="attention_mask", shift=1)
    torch.testing.assert_close(
        features({"h": s}, {"h": t}, batch), functional.mse_loss(s[:, :-1][kept], t[:, :-1][kept])
    )
    term = Term(KDLoss(2.0), target=None, shift=1)
    torch.testing.assert_close(
        term({"logits": s}, {"logits": t}, batch), kd_loss(s.flatten(0, 1), t.flatten(0, 1), 2.0)
    )


def test_soft_labels_and_stacked_teachers_are_shifted():
    student, soft = torch.randn(2, 4, 3), torch.rand(2, 4, 3).softmax(-1)
    term = Term(TaskLoss(), teacher=None, shift=2)
    torch.testing.assert_close(
        term({"logits": student}, None, {"target": soft}),
        functional.cross_entropy(student[:, :-2].flatten(0, 1), soft[:, 2:].flatten(0, 1)),
    )

    class Last(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
            return (student - teacher[:, -1]).square().mean()

    teachers = torch.randn(2, 5, 4, 3)
    labels = torch.zeros(2, 4).long()
    found = Term(Last(), shift=1)({"logits": student}, {"logits": teachers}, {"target": labels})
    torch.testing.assert_close(found, functional.mse_loss(student[:, :-1], teachers[:, -1, :-1]))


@pytest.mark.parametrize(
    ("term", "student", "label", "message"),
    [
        (Term(TaskLoss(), teacher=None, shift=1), (4, 3), (4,), r"shift=1 of a TaskLoss term .* student gave \(4, 3\)"),
        (Term(TaskLoss(), teacher=None, shift=1), (2, 3, 4, 4), (2, 4, 4), r"outputs are \(2, 3, 4, 4\), labels"),
        (Term(TaskLoss(), teacher=None, shift=1), (2, 5, 3), (10,), r"labels \(10,\) .*labels and mask \(N, L\)"),
    ],
)
def test_a_shift_of_what_are_no_tokens_is_one_line(term, student, label, message):
    with pytest.raises(ValueError, match=message):
        term({"logits": torch.zeros(student)}, None, {"target": torch.zeros(label).long()})


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match="shift=-1 of a TaskLoss term is negative"):
        Term(TaskLoss(), shift=-1)


# ---- the classes of sequences before the positions


def channels_first(width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(1, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, 5, 1))


@pytest.mark.parametrize("length", [7, 5])  # as many positions as classes, too
def test_classes_before_positions(length: int, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, length, generator=generator), torch.randint(5, (2, length), generator=generator)
    y[0, 0] = -100
    student, teacher = channels_first(), channels_first(8, seed=1)
    terms = {"task": Term(TaskLoss(), teacher=None, class_dim=1), "kd": Term(KDLoss(2.0), class_dim=1)}
    kept, s, t = y != -100, student(x).movedim(1, 2), teacher(x).movedim(1, 2)
    nll = functional.cross_entropy(student(x), y).item()
    for found in both(student, teacher, terms, (x, y), tmp_path):
        assert found == pytest.approx({"task": nll, "kd": kd_loss(s[kept], t[kept], 2.0).item()})
    (measured,) = toys.trainer(tmp_path).validate(
        OfflineDistiller(student, teacher, terms), toys.Loader([(x, y)]), verbose=False
    )
    assert measured["val/nll"] == pytest.approx(functional.cross_entropy(student(x), y).item())


def test_classes_before_positions_that_nobody_has_stated_are_refused(tmp_path):
    x = torch.randn(2, 1, 7)
    with pytest.raises(
        ValueError, match=r"term 'kd': logits .*\(2, 5, 7\), is the output of a convolution.*class_dim=1"
    ):
        OfflineDistiller(channels_first(), channels_first(8), {"kd": Term(KDLoss())}).compute_losses(x)
    with pytest.raises(ValueError, match="is the output of a convolution"):
        both(
            channels_first(),
            channels_first(8),
            {"kd": Term(KDLoss(), class_dim=-1), "other": Term(KDLoss())},
            (x,),
            tmp_path,
        )
    with pytest.raises(ValueError, match=r"class_dim=2 of a KDLoss term must be 1"):
        Term(KDLoss(), class_dim=2)


# ---- labels that no loss needs


@pytest.mark.parametrize(
    ("student", "teacher", "x", "y"),
    [
        (pixels(stride=2), pixels(8, 1, stride=2), torch.randn(2, 1, 8, 8), torch.zeros(2, 8, 8).long()),
        (nn.Linear(8, 4), nn.Linear(8, 4), torch.randn(2, 5, 8), torch.tensor([1, 3])),
        (nn.Linear(8, 4), nn.Linear(8, 4), torch.randn(2, 5, 8), torch.randn(2, 5)),
        (nn.Linear(8, 4), nn.Linear(8, 4), torch.randn(2, 5, 8), torch.zeros(2, 5, 2).long()),
    ],
    ids=["maps of another size", "a label of the whole", "values", "two labels a token"],
)
def test_a_label_that_does_not_fit_and_that_no_loss_needs_is_passed_over(student, teacher, x, y, tmp_path):
    flat = [out.movedim(1, -1) if out.dim() == 4 else out for out in (student(x), teacher(x))]
    wanted = kd_loss(*(out.flatten(0, -2) for out in flat), 2.0).item()
    for found in both(student, teacher, {"kd": Term(KDLoss(2.0))}, (x, y), tmp_path):
        assert found["kd"] == pytest.approx(wanted)


def test_a_label_of_another_size_that_a_loss_needs_is_refused():
    terms = {"task": Term(TaskLoss(), teacher=None)}
    with pytest.raises(ValueError, match=r"target \(2, 8, 8\) are not of the same positions"):
        Classifier(pixels(stride=2), terms).compute_losses((torch.randn(2, 1, 8, 8), torch.zeros(2, 8, 8).long()))


# ---- nothing that counts


def empty_batches() -> dict[str, tuple[Any, dict[str, Term], nn.Module]]:
    ids = torch.tensor([[1, 2, 3], [3, 2, 1]])
    none = torch.full((2, 3), -100)
    task, kd = Term(TaskLoss(), teacher=None), Term(KDLoss())
    masked = {"kd": Term(KDLoss(), mask="mask", target=None)}
    hidden = {"h": Term(FeatureMSELoss(), student="embedding", teacher="embedding", mask="mask", target=None)}
    relation = {"r": Term(RKDLoss(), student="embedding", teacher="embedding", mask="mask", target=None)}
    return {
        "tokens": ({"input_ids": ids, "labels": none}, {"task": task, "kd": kd}, Language()),
        "pixels": ((torch.randn(2, 1, 4, 4), torch.full((2, 4, 4), 255)), {
            "task": Term(TaskLoss(), teacher=None, ignore_index=255), "kd": Term(KDLoss(), ignore_index=255)
        }, pixels()),
        "masked tokens": ({"input_ids": ids, "mask": torch.zeros(2, 3)}, masked, Language()),
        "masked hidden states": ({"input_ids": ids, "mask": torch.zeros(2, 3)}, hidden, Language()),
        "masked relations": ({"input_ids": ids, "mask": torch.zeros(2, 3)}, relation, Language()),
        "images": ((torch.randn(2, 8), torch.full((2,), -100)), {"task": task}, nn.Linear(8, 3)),
        "images with an index of their own": (
            (torch.randn(2, 8), torch.full((2,), 255)),
            {"task": Term(TaskLoss(), teacher=None, ignore_index=255)},
            nn.Linear(8, 3),
        ),
        "binary labels": (
            (torch.randn(2, 8), torch.full((2, 3), -100)),
            {"task": Term(BinaryTaskLoss(), teacher=None)},
            nn.Linear(8, 3),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", empty_batches())
def test_a_batch_in_which_nothing_counts_is_0_with_a_graph(name: str, tmp_path):
    batch, terms, network = empty_batches()[name]
    learner = OfflineDistiller(network, empty_batches()[name][2], terms)
    losses = learner.compute_losses(batch)
    assert {value.item() for value in losses.values()} == {0.0}
    learner.weighted_sum(losses).backward()
    reached = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert reached
    assert not any(gradient.any() for gradient in reached)
    for found in both(network, empty_batches()[name][2], terms, batch, tmp_path):
        assert set(found.values()) == {0.0}


@pytest.mark.parametrize("name", ["tokens", "pixels", "images", "images with an index of their own"])
def test_a_batch_in_which_nothing_counts_adds_nothing_to_the_metrics(name: str, tmp_path):
    empty, terms, network = empty_batches()[name]
    x, y = list(empty.values()) if isinstance(empty, dict) else empty
    full = dict(zip(empty, (x, y * 0 + 1), strict=True)) if isinstance(empty, dict) else (x, y * 0 + 1)
    found = []
    for batches in ([full], [empty, full, empty]):
        learner = OfflineDistiller(network, empty_batches()[name][2], terms)
        found += toys.trainer(tmp_path).validate(learner, toys.Loader(batches), verbose=False)
    assert found[0] == found[1]
    assert len(found[0]) == 2


# ---- two processes: a mean over what counts anywhere


def shares() -> dict[str, tuple[nn.Module, dict[str, Term], Tensor, Tensor]]:
    """Rank 0 has no label, or few; rank 1 has them. The last one has none on either."""
    ids = torch.tensor([[1, 2, 3], [3, 2, 1], [4, 1, 2], [5, 0, 1]])
    some = torch.tensor([[-100, -100, -100], [-100, -100, -100], [1, 2, -100], [0, -100, 3]])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 8, generator=generator)
    hint = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss())}

    def flat() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(8, 3)

    return {
        "tokens": (Language(), hint, ids, some),
        "no tokens": (Language(), hint, ids, torch.full((4, 3), -100)),
        "images": (flat(), {"task": hint["task"]}, images, torch.tensor([-100, -100, 0, 2])),
        "uneven images": (flat(), {"task": hint["task"]}, images, torch.tensor([1, -100, 0, 2])),
        "no images": (flat(), {"task": hint["task"]}, images, torch.full((4,), -100)),
        "images of other losses that need labels": (
            flat(),
            {"dkd": Term(DKDLoss(1.0)), "wsld": Term(WSLDLoss()), "tf": Term(TfKDLoss(1.0), teacher=None)},
            images,
            torch.tensor([1, -100, 0, 2]),
        ),
        "binary labels": (
            flat(),
            {"task": Term(BinaryTaskLoss(), teacher=None)},
            images,
            torch.tensor([[-100, 1, -100], [-100, -100, -100], [1, 0, 1], [0, 0, 1]]),
        ),
    }


def moved(folder: Path, rank: int | None) -> dict[str, Tensor]:
    """The student's weights after a step of one process with all samples, or of this rank with its half."""
    found = {}
    for name, (student, terms, x, y) in shares().items():
        teacher = Language(8, seed=5) if isinstance(student, Language) else nn.Linear(8, 3)
        if rank is not None:
            x, y = x[2 * rank : 2 * rank + 2], y[2 * rank : 2 * rank + 2]
        torch.manual_seed(7)
        learner = OfflineDistiller(student, teacher, terms, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
        changes: dict[str, Any] = {} if rank is None else {"strategy": "ddp", "devices": 2}
        trainer = toys.trainer(folder, max_epochs=1, use_distributed_sampler=False, **changes)
        trainer.fit(learner, toys.Loader([(x, y)]))
        found[name] = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    return found


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    run_two("tests.core.test_term_positions", out)
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@two_processes
def test_two_processes_take_the_step_of_one_where_ranks_have_few_labels_or_none(of_ranks, tmp_path):
    one = moved(tmp_path, None)
    before = {name: torch.cat([p.detach().flatten() for p in case[0].parameters()]) for name, case in shares().items()}
    for name, weights in one.items():
        assert torch.equal(weights, before[name]) is name.startswith("no ")
        for rank in of_ranks:
            torch.testing.assert_close(rank[name], weights, rtol=1e-6, atol=1e-7)


if __name__ == "__main__":
    number, out = int(os.environ["LOCAL_RANK"]), Path(sys.argv[1])
    torch.save(moved(out / str(number), number), out / f"rank-{number}.pt")

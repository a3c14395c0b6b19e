from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd_lightning.core.term import Term, names
from kd_lightning.losses import KDLoss, TaskLoss, kd_loss, task_loss
from kd_lightning.losses.common.checks import check_width
from tests import ranks


class Recorder(nn.Module):
    """A loss that keeps what it was given."""

    def forward(self, *arguments: Any) -> Tensor:
        self.given = arguments
        return torch.zeros(())


def tensors(*labels: str) -> dict[str, Tensor]:
    return {label: torch.full((2, 3), float(position)) for position, label in enumerate(labels)}


STUDENT, TEACHER, LABELS = tensors("logits", "body", "input"), tensors("logits", "head"), tensors("target", "index")


# ---- addresses


def test_a_term_compares_the_logits_and_knows_the_target_unless_told_otherwise():
    term = Term(Recorder())
    term(STUDENT, TEACHER, LABELS)
    student, teacher, target = term.loss.given
    assert student is STUDENT["logits"]
    assert teacher is TEACHER["logits"]
    assert target is LABELS["target"]


def test_addresses_are_names():
    term = Term(Recorder(), student="body", teacher="head", target="index")
    term(STUDENT, TEACHER, LABELS)
    student, teacher, target = term.loss.given
    assert student is STUDENT["body"]
    assert teacher is TEACHER["head"]
    assert target is LABELS["index"]


def test_addresses_that_are_lists_reach_the_loss_as_lists_in_their_order():
    term = Term(Recorder(), student=["input", "body"], teacher=["logits"], target=["target", "index"])
    term(STUDENT, TEACHER, LABELS)
    student, teacher, target = term.loss.given
    assert [value is STUDENT[name] for value, name in zip(student, ["input", "body"], strict=True)] == [True, True]
    assert len(teacher) == 1
    assert teacher[0] is TEACHER["logits"]
    assert [value is LABELS[name] for value, name in zip(target, ["target", "index"], strict=True)] == [True, True]


def test_no_teacher_and_no_target_are_none():
    term = Term(Recorder(), teacher=None, target=None)
    term(STUDENT, TEACHER, LABELS)
    assert term.loss.given[1:] == (None, None)
    term(STUDENT, None, {})
    assert term.loss.given[1:] == (None, None)


def test_a_label_that_the_batch_lacks_is_none_for_a_loss_that_can_do_without():
    term = Term(Recorder(), target=["target", "index"])
    term(STUDENT, TEACHER, {"target": LABELS["target"]})
    assert term.loss.given[2][0] is LABELS["target"]
    assert term.loss.given[2][1] is None
    logits = torch.randn(4, 10)
    assert torch.equal(Term(KDLoss(2.0))({"logits": logits}, {"logits": -logits}, {}), kd_loss(logits, -logits, 2.0))


@pytest.mark.parametrize(("address", "found"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_names_are_those_in_an_address(address: Any, found: list[str]):
    assert names(address) == found


# ---- what is refused


def test_a_loss_that_needs_a_label_names_those_that_are_there():
    logits, labels = torch.randn(4, 10), torch.arange(4)
    term = Term(TaskLoss(), teacher=None)
    with pytest.raises(
        ValueError, match="TaskLoss needs the label 'target'; this batch has image, label: set the term's"
    ):
        term({"logits": logits}, None, {"image": logits, "label": labels})
    with pytest.raises(ValueError, match="this batch has no labels"):
        term({"logits": logits}, None, {})
    with pytest.raises(ValueError, match="TaskLoss needs the label None; this batch has target: set the term's target"):
        Term(TaskLoss(), teacher=None, target=None)({"logits": logits}, None, {"target": labels})
    term = Term(TaskLoss(), teacher=None, target="label")
    assert torch.equal(term({"logits": logits}, None, {"label": labels}), task_loss(logits, labels))


class TwoLabels(Recorder):
    needs_target = True


def test_a_loss_that_needs_several_labels_names_the_one_that_is_missing():
    term = Term(TwoLabels(), target=["target", "index"])
    term(STUDENT, TEACHER, LABELS)
    with pytest.raises(ValueError, match="TwoLabels needs the label 'index'; this batch has target: set the term's"):
        term(STUDENT, TEACHER, {"target": LABELS["target"]})


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("address", ["conv.3", ["logits", "conv.3"]])
def test_a_layer_that_was_not_seen_is_refused_with_those_that_were(side: str, address: Any):
    term = Term(Recorder(), **{side: address})
    seen = "logits, body, input" if side == "student" else "logits, head"
    with pytest.raises(
        ValueError,
        match=f"a Recorder term compares the {side}'s 'conv.3', and only {seen} was recorded: set the term's {side}",
    ):
        term(STUDENT, TEACHER, LABELS)


def test_a_term_that_compares_with_a_teacher_where_there_is_none_is_refused():
    with pytest.raises(ValueError, match="a KDLoss term compares with a teacher and there is none: teacher=None"):
        Term(KDLoss())(STUDENT, None, LABELS)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight: float):
    with pytest.raises(ValueError, match=f"weight={weight} of a KDLoss term is not a finite number"):
        Term(KDLoss(), weight=weight)


@pytest.mark.parametrize("weight", [0.0, 0.1, 100.0, -1.0])
def test_the_weight_is_kept_and_the_loss_stays_unweighted(weight: float):
    logits = torch.randn(4, 10)
    term = Term(KDLoss(2.0), weight=weight)
    assert term.weight == weight
    assert torch.equal(term({"logits": logits}, {"logits": -logits}, {}), kd_loss(logits, -logits, 2.0))


# ---- a term is a module


def test_parameters_of_a_loss_are_trained_saved_and_loaded_with_its_term():
    loss = RelationLoss()
    term = Term(loss, weight=2.0)
    assert list(term.parameters()) == list(loss.parameters())
    assert list(term.state_dict()) == [
        "loss.connector.weight",
        "loss.connector.bias",
    ]  # and neither weight nor addresses


# ---- several processes


class RelationLoss(nn.Module):
    """Compares samples with each other, weighs each by its label, and learns a connector."""

    compares_samples = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.connector = nn.Linear(5, 7)

    def forward(self, student: Any, teacher: Tensor, target: Tensor) -> Tensor:
        hidden, logits = student
        mapped = self.connector(hidden)
        same = (target[:, None] == target[None, :]).float()
        similarity = (mapped @ mapped.T - teacher @ teacher.T) ** 2
        return ((1 + same) * similarity).mean() + (logits @ logits.T).logsumexp(dim=1).mean()


class Learner(nn.Module):
    """A small network and its term, whose forward gives the loss: what DDP wants."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.term = Term(loss, student=["hidden", "logits"])

    def forward(self, x: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        hidden = self.hidden(x).tanh()
        return self.term({"hidden": hidden, "logits": self.head(hidden)}, {"logits": teacher}, {"target": target})


class PerRankLoss(RelationLoss):
    compares_samples = False


def global_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(8, 6, generator=generator),
        torch.randn(8, 7, generator=generator),
        torch.randint(3, (8,), generator=generator),
    )


def gradient(learner: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    loss = learner(*batch)
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in learner.parameters()])


def one_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    share = tuple(part[4 * rank : 4 * rank + 4] for part in global_batch())
    results = [gradient(DistributedDataParallel(Learner(loss)), share) for loss in (RelationLoss(), PerRankLoss())]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@ranks.two_processes
def test_a_loss_that_compares_samples_gets_the_batch_of_all_ranks_and_the_gradient_of_one_process(tmp_path: Path):
    mp.start_processes(one_rank, args=(ranks.free_port(), tmp_path), nprocs=2, start_method=ranks.START)
    loss, whole = gradient(Learner(RelationLoss()), global_batch())
    for rank in range(2):
        (gathered_loss, gathered), (_, per_rank) = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(gathered_loss, loss)
        assert (gathered - whole).norm() <= 1e-6 * whole.norm()
        assert (per_rank - whole).norm() > 0.01 * whole.norm()  # what it would be if the term did not gather


@pytest.mark.parametrize(("student", "teacher"), [("body", "head"), (["input", "body"], ["head", "head"])])
def test_features_of_another_width_than_the_loss_was_built_for_are_named_by_their_layer(student, teacher):
    class Built(nn.Module):
        def forward(self, student, teacher, target=None):
            for layer, seen in enumerate(student if isinstance(student, list) else [student]):
                check_width(seen, 3, "student", layer)
            shown = teacher if isinstance(teacher, list) else [teacher]
            check_width(shown[-1], 64, "teacher", len(shown) - 1)

    features = {"logits": torch.zeros(2, 5), "head": torch.zeros(2, 32, 4, 4)}
    term = Term(Built(), student=student, teacher=teacher)
    with pytest.raises(ValueError, match="the teacher's head gives 32 channels, Built was built for 64: ") as refusal:
        term(STUDENT, features, LABELS)
    assert "kd-lightning layers" in str(refusal.value)
    wide = STUDENT | {"body": torch.zeros(2, 7)}
    with pytest.raises(ValueError, match="the student's body gives 7 channels, Built was built for 3"):
        Term(Built(), student=student, teacher=teacher)(wide, features, LABELS)

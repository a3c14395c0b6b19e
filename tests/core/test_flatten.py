"""Tokens and pixels: each position is a row to the losses, and the ignored ones are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import OfflineDistiller, Term
from kd_lightning.core.flatten import flatten_positions
from kd_lightning.losses import KDLoss, TaskLoss
from tests import toys


class Tagger(nn.Module):
    """Token ids (N, L) to tag logits (N, L, C)."""

    def __init__(self, width: int, tags: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(20, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.classifier = nn.Linear(width, tags)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.classifier(self.recurrent(self.embedding(input_ids))[0])


def segmenter(width: int, classes: int = 4, seed: int = 0) -> nn.Module:
    """Images (N, 3, H, W) to pixel logits (N, C, H, W)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))


def terms() -> dict[str, Term]:
    return {
        "task": Term(TaskLoss(), weight=0.3, teacher=None, target="labels"),
        "kd": Term(KDLoss(temperature=2.0), weight=0.7, target="labels"),
    }


def written_out(student: Tensor, teacher: Tensor, labels: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Position by position; logits (N, ..., C), labels (N, ...)."""
    task, kd, count = torch.zeros(()), torch.zeros(()), 0
    for s, t, y in zip(student.flatten(0, -2), teacher.flatten(0, -2), labels.flatten(), strict=True):
        if y != ignore:
            count += 1
            task = task - s.log_softmax(0)[y]
            p = (t / 2).softmax(0)
            kd = kd + 4 * (p * (p.log() - (s / 2).log_softmax(0))).sum()
    return task / count, kd / count


def test_token_tagging(tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (6, 7), generator=generator)
    labels = torch.randint(5, (6, 7), generator=generator)
    labels[:, 5:] = -100  # padding
    labels[0] = -100
    student, teacher = Tagger(8, seed=1), Tagger(16, seed=2)
    learner = OfflineDistiller(student, teacher, terms())
    found = learner.compute_losses({"input_ids": ids, "labels": labels})
    task, kd = written_out(student(ids), teacher(ids), labels, -100)
    torch.testing.assert_close(found["task"], task)
    torch.testing.assert_close(found["kd"], kd)

    (measured,) = toys.trainer(tmp_path).test(
        learner, toys.Loader([{"input_ids": ids, "labels": labels}]), verbose=False
    )
    kept = labels != -100
    right = (student(ids).argmax(-1) == labels)[kept]
    assert measured["test/acc"] == pytest.approx(right.float().mean().item())
    assert measured["test/nll"] == pytest.approx(functional.cross_entropy(student(ids)[kept], labels[kept]).item())


def test_segmentation_with_an_ignored_label_of_its_own():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 6, 5, generator=generator)
    mask = torch.randint(4, (3, 6, 5), generator=generator)
    mask[:, 0] = 255
    student, teacher = segmenter(4, seed=1), segmenter(8, seed=2)
    both = terms()
    for term in both.values():
        term.ignore_index = 255
    found = OfflineDistiller(student, teacher, both).compute_losses({"image": image, "labels": mask})
    task, kd = written_out(student(image).movedim(1, -1), teacher(image).movedim(1, -1), mask, 255)
    torch.testing.assert_close(found["task"], task)
    torch.testing.assert_close(found["kd"], kd)


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 5, 3, 4)])
def test_stacked_teachers_and_probabilities_follow_the_positions(shape):
    student, probabilities = torch.rand(2, *shape)
    teachers = torch.rand(shape[0], 3, *shape[1:])
    rows = flatten_positions(student, teachers, probabilities)
    last = (lambda x: x.movedim(1, -1)) if len(shape) == 4 else (lambda x: x)
    assert torch.equal(rows.student, last(student).reshape(-1, 5))
    assert torch.equal(rows.target, last(probabilities).reshape(-1, 5))
    for k in range(3):
        assert torch.equal(rows.teacher[:, k], last(teachers[:, k]).reshape(-1, 5))


def test_rows_are_not_flattened_again():
    logits, target = torch.rand(4, 5), torch.tensor([1, -100, 2, 3])
    rows = flatten_positions(logits, None, target)
    assert rows.student is logits
    assert rows.target is target


def test_labels_of_other_positions_are_refused_with_all_shapes():
    with pytest.raises(ValueError, match=r"\(2, 7, 5\), teacher logits \(2, 6, 5\) and target \(2, 7\)"):
        flatten_positions(torch.rand(2, 7, 5), torch.rand(2, 6, 5), torch.zeros(2, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="one label"):
        flatten_positions(torch.rand(2, 7, 5), None, torch.zeros(2, 6, dtype=torch.long))


def test_a_batch_without_a_position_to_learn_from_has_no_rows():
    rows = flatten_positions(torch.rand(2, 7, 5), torch.rand(2, 7, 5), torch.full((2, 7), -100))
    assert [tuple(part.shape) for part in rows] == [(0, 5), (0, 5), (0,)]
    rows = flatten_positions(torch.rand(2, 5), None, None, mask=torch.zeros(2))
    assert tuple(rows.student.shape) == (0, 5)


def test_plain_kd_asks_for_no_labels():
    student, teacher = Tagger(8, seed=1), Tagger(16, seed=2)
    learner = OfflineDistiller(student, teacher, {"kd": Term(KDLoss())})
    assert learner.compute_losses(torch.zeros(2, 3, dtype=torch.long))["kd"].isfinite()

from __future__ import annotations

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.losses.common.targets import check_labels, of_one_shape


@pytest.mark.parametrize(
    ("outputs", "target", "shape"),
    [
        ((6, 4), (6, 4), (6, 4)),
        ((6,), (6,), (6,)),
        ((6, 1), (6,), (6, 1)),
        ((6,), (6, 1), (6,)),
        ((6, 7, 1), (6, 7), (6, 7, 1)),  # tokens
        ((6, 7), (6, 7, 1), (6, 7)),
        ((6, 1, 5, 7), (6, 5, 7), (6, 1, 5, 7)),  # pixels
        ((6, 1, 5, 1), (6, 5, 1), (6, 1, 5, 1)),
        ((6, 1, 5, 7), (6, 1, 5, 7), (6, 1, 5, 7)),
        ((1, 1), (1,), (1, 1)),
    ],
)
def test_one_output_has_a_dimension_of_its_own_or_none(outputs, target, shape):
    values = torch.arange(torch.Size(target).numel()).view(target)
    student, label = of_one_shape(torch.zeros(outputs), values, "labels")
    assert student.shape == label.shape == shape
    assert torch.equal(label.flatten(), values.flatten())


@pytest.mark.parametrize(
    ("outputs", "target"),
    [
        ((6, 4), (6,)),
        ((6,), (6, 4)),
        ((6, 2, 5, 7), (6, 5, 7)),
        ((6, 1), (5,)),
        ((0, 1), (0,)),
        ((), ()),
        ((6, 1), (6, 1, 1, 1)),
    ],
)
def test_other_shapes_are_refused(outputs, target):
    with pytest.raises(UsageError, match=r"do not fit: targets are labels of 0 and 1"):
        of_one_shape(torch.zeros(outputs), torch.zeros(target), "labels of 0 and 1")


@pytest.mark.parametrize(
    "label",
    [
        torch.tensor([[0, 1], [1, -100]]),
        torch.tensor([[False, True]]),
        torch.tensor([[0, 1]], dtype=torch.uint8),
        torch.tensor([[0.0, 0.25, 1.0]]),
    ],
)
def test_labels_between_0_and_1_are_taken(label):
    check_labels(label, -100)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (torch.tensor([0, 1, 2]), "2"),
        (torch.tensor([-1, 0]), "-1"),
        (torch.tensor([0.5, -100.0]), "-100"),
        (torch.tensor([1.5]), "1.5"),
    ],
)
def test_other_labels_are_refused_by_their_value(label, says):
    with pytest.raises(UsageError, match=f"holds the label {says}: labels that can hold together"):
        check_labels(label, -100)


def test_labels_are_not_read_while_a_step_is_compiled(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # reading them would break the graph
    check_labels(torch.tensor([2]), -100)

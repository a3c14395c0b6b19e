from __future__ import annotations

import pytest
import torch

from kd_lightning import UsageError
from kd_lightning.losses.common.checks import check_logits, check_one_side


@pytest.mark.parametrize("samples", [1, 6])
def test_one_output_a_sample_is_named_as_such(samples):
    with pytest.raises(UsageError, match=rf"\({samples}, 1\) are one output a sample.*BernoulliKDLoss.*LogitMSELoss"):
        check_logits(torch.zeros(samples, 1), torch.zeros(samples, 1))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((6, 1), (6, 4)),
        ((6, 4), (6, 1)),
        ((6, 1), (5, 1)),
        ((6, 4), (6, 5)),
        ((6, 4), (5, 4)),
        ((0, 4), (0, 4)),
        ((6, 0), (6, 0)),
        ((6,), (6,)),
        ((), ()),
        ((6, 1, 3, 3), (6, 1, 3, 3)),
        ((6, 4, 3, 3), (6, 4, 3, 3)),
    ],
)
def test_other_shapes_get_what_logits_must_be(student, teacher):
    with pytest.raises(UsageError, match=r"must both be \(N, C\) with the same N >= 1 and C >= 2: give both") as error:
        check_logits(torch.zeros(student), torch.zeros(teacher))
    assert f"student logits {student} and teacher logits {teacher}" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 2), (6, 4)])
def test_logits_of_one_shape_are_taken(shape):
    check_logits(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize(("shape", "at_least"), [((1, 2), 1), ((2, 2), 2), ((6, 4), 6)])
def test_logits_of_one_side_are_taken(shape, at_least):
    check_one_side(torch.zeros(shape), at_least)


@pytest.mark.parametrize(("shape", "at_least"), [((1, 2), 2), ((6, 1), 1), ((0, 4), 1), ((6,), 1), ((6, 4, 3), 1)])
def test_other_shapes_of_one_side_are_refused(shape, at_least):
    with pytest.raises(UsageError, match=rf"must be \(N, C\) with C >= 2 and N >= {at_least} samples"):
        check_one_side(torch.zeros(shape), at_least)

import math

import pytest
import torch
from torch.nn import functional as F

from kd_lightning.losses import AttentionTransferLoss, attention_transfer_loss
from tests.losses import naive
from tests.losses.case import Case, other_implementation
from tests.losses.plain import STUDENT, STUDENTS, TEACHER, TEACHERS, Plain

WRONG = [
    ((6, 3, 4, 4), (5, 3, 4, 4)),
    ((6, 3), (6, 3)),
    ((6, 3, 4, 4), (6, 3)),
    ((0, 3, 4, 4), (0, 3, 4, 4)),
]
CASES = {
    "AttentionTransferLoss": Case(student=(6, 3, 4, 4), teacher=(6, 3, 4, 4), wrong=WRONG),
    "AttentionTransferLoss of two layers": Case(
        AttentionTransferLoss, student=[(6, 3, 4, 4), (6, 2, 3, 2)], teacher=[(6, 5, 2, 2), (6, 4, 3, 2)]
    ),
}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(channels: list[list[list[float]]]) -> list[float]:
    rows, columns = len(channels[0]), len(channels[0][0])
    energy = [
        sum(channel[i][j] ** 2 for channel in channels) / len(channels) for i in range(rows) for j in range(columns)
    ]
    length = math.sqrt(sum(value**2 for value in energy))
    return [value / length for value in energy]


def naive_at(student: torch.Tensor, teacher: torch.Tensor) -> float:
    errors = [
        (a - b) ** 2 for s, t in naive.pairs(student, teacher) for a, b in zip(attention(s), attention(t), strict=True)
    ]
    return sum(errors) / len(errors)


def test_value_is_that_of_naive_loops():
    student, teacher = maps(3, 4, 5, 2, seed=1), maps(3, 7, 5, 2, seed=2)
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(naive_at(student, teacher), rel=1e-9)


def test_the_larger_map_is_averaged_down():
    student, teacher = maps(2, 4, 6, 4, seed=1), maps(2, 7, 3, 2, seed=2)
    pooled = student.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(naive_at(pooled, teacher), rel=1e-9)
    assert attention_transfer_loss(teacher, student).item() == pytest.approx(naive_at(teacher, pooled), rel=1e-9)


def test_layers_are_summed():
    sides = [[maps(2, c, 3, 3, seed=i + c) for i in (1, 2, 3)] for c in (4, 7)]
    wanted = sum(naive_at(s, t) for s, t in zip(*sides, strict=True))
    assert AttentionTransferLoss()(*sides).item() == pytest.approx(wanted, rel=1e-9)


def test_scale_signs_and_number_of_channels_do_not_matter():
    student, teacher = maps(2, 4, 3, 3, seed=1), maps(2, 5, 3, 3, seed=2)
    value = attention_transfer_loss(student, teacher).item()
    assert attention_transfer_loss(-7 * student, 0.01 * teacher).item() == pytest.approx(value, rel=1e-9)
    assert attention_transfer_loss(student, teacher.repeat(1, 3, 1, 1)).item() == pytest.approx(value, rel=1e-9)


def test_it_is_torchdistills_in_its_mode_of_the_authors_code():
    pairs = {f"pair{i}": {side: {"io": "output", "path": f"{i}"} for side in ("student", "teacher")} for i in (1, 2)}
    sides = [{f"{i}": {"output": maps(3, c, 4, 4, seed=i + c).float()} for i in (1, 2)} for c in (4, 7)]
    theirs = other_implementation("torchdistill.losses.mid_level").ATLoss(pairs, mode="code")(*sides)
    ours = AttentionTransferLoss()(*([layer["output"] for layer in side.values()] for side in sides))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_the_papers_distance_is_no_square():
    torch.manual_seed(0)
    student, teacher = {"1": {"output": maps(1, 4, 2, 2).float()}}, {"1": {"output": maps(1, 4, 2, 2, seed=1).float()}}
    pairs = {"pair": {side: {"io": "output", "path": "1"} for side in ("student", "teacher")}}
    paper = other_implementation("torchdistill.losses.mid_level").ATLoss(pairs, mode="paper")(student, teacher)
    ours = attention_transfer_loss(student["1"]["output"], teacher["1"]["output"])
    assert (ours * 4).sqrt().item() == pytest.approx(paper.item(), rel=1e-5)  # one sample, four positions


def test_layers_that_have_no_partner_are_refused():
    with pytest.raises(ValueError, match="2 layers of the student cannot be paired with 1 of the teacher"):
        AttentionTransferLoss()([maps(2, 3, 2, 2)] * 2, [maps(2, 3, 2, 2)])


def plain_attention_transfer(m, s, t, y):
    s, t = (F.normalize(x.square().mean(1).flatten(1)) for x in (s, t))
    return F.mse_loss(s, t)


def plain_attention_transfers(m, s, t, y):
    return sum(plain_attention_transfer(m, a, b, y) for a, b in zip(s, t, strict=True))


PLAIN = {
    "AttentionTransferLoss": Plain(plain_attention_transfer, STUDENT, TEACHER),
    "AttentionTransferLoss of three layers": Plain(plain_attention_transfers, STUDENTS, TEACHERS),
}

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning import Term, losses
from kd_lightning.losses import ModalityGraphLoss
from tests.losses.case import Case
from tests.losses.plain import ROWS, N, Plain


def of_logits() -> ModalityGraphLoss:
    torch.manual_seed(0)
    return ModalityGraphLoss(teachers=2)


def with_representations() -> ModalityGraphLoss:
    torch.manual_seed(0)
    return ModalityGraphLoss(2, 10, student_channels=5, teacher_channels=[6, 3], prior=[3.0, 1.0])


CASES = {
    "ModalityGraphLoss": Case(
        of_logits,
        teacher=(6, 2, 10),
        minimum="elsewhere",  # the edges have a part of it
        wrong=[((6, 10), (6, 3, 10)), ((6, 10), (5, 2, 10)), ((6, 10), (6, 2, 9)), ((6, 9), (6, 2, 9))],
    ),
    "ModalityGraphLoss of representations": Case(
        with_representations,
        student=[(6, 10), (6, 5)],
        teacher=[(6, 2, 10), (6, 6), (6, 3)],
        minimum="elsewhere",
        wrong=[
            ([(6, 10), (6, 4)], [(6, 2, 10), (6, 6), (6, 3)]),
            ([(6, 10), (6, 5)], [(6, 2, 10), (6, 6), (6, 4)]),
            ((6, 10), (6, 2, 10)),
        ],
    ),
}


def linear(layer: torch.nn.Linear, x: list[float]) -> list[float]:
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]


def apart(a: list[float], b: list[float]) -> float:
    return 1 - sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [2, 4])
def test_value_is_that_of_the_naive_formula(samples: int):
    loss = with_representations().double()
    z, h, zs, hs = (
        rows(samples, 10, seed=1),
        rows(samples, 5, seed=2),
        rows(samples, 2, 10, seed=3),
        [rows(samples, 6, seed=4), rows(samples, 3, seed=5)],
    )
    prior, imitation, edges = [0.75, 0.25], 0.0, []
    for n in range(samples):
        scores = []
        for k in range(2):
            of_logits = sum(w * v for w, v in zip(loss.logit_score.weight[0].tolist(), zs[n, k].tolist(), strict=True))
            scores.append((of_logits + linear(loss.representation_scores[k], hs[k][n].tolist())[0]) / 8)
        edges.append([math.exp(score) / sum(map(math.exp, scores)) for score in scores])
        for k in range(2):
            distance = 10 * apart(z[n].tolist(), zs[n, k].tolist())
            distance += apart(linear(loss.connectors[k], h[n].tolist()), hs[k][n].tolist())
            imitation += (edges[n][k] + prior[k]) * distance / samples
    means = [sum(edge[k] for edge in edges) / samples for k in range(2)]
    expected = imitation + 10 * sum((mean - p) ** 2 for mean, p in zip(means, prior, strict=True))
    assert loss([z, h], [zs, *hs]).item() == pytest.approx(expected, rel=1e-9)


def test_with_alpha_0_all_edges_are_equal():
    loss = ModalityGraphLoss(3, alpha=0.0).double()
    assert torch.equal(loss.edges(rows(4, 3, 10, seed=2), []), torch.full((4, 3), 1 / 3, dtype=torch.float64))


def test_the_edges_learn_which_teacher_the_student_can_imitate():
    """One teacher agrees with the student and the other does not; the two are distinguishable by their logits."""
    torch.manual_seed(0)
    loss = ModalityGraphLoss(2, prior_weight=0.0)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    z = torch.randn(32, 10) + 1
    zs = torch.stack((z, torch.randn(32, 10) - 1), dim=1)
    before = loss.edges(zs, []).mean(0)
    for _ in range(200):
        optimizer.zero_grad()
        loss(z, zs).backward()
        optimizer.step()
    after = loss.edges(zs, []).mean(0)
    assert abs(before[0].item() - 0.5) < 0.1
    assert after[0].item() > 0.8


def test_its_term_takes_the_logits_and_a_layer_of_each():
    term = Term(with_representations(), student=["logits", "pool"], teacher=["logits", "members.a", "members.b"])
    student = {"logits": torch.ones(6, 10), "pool": torch.ones(6, 5, 1, 1)}
    teacher = {"logits": torch.ones(6, 2, 10), "members.a": torch.ones(6, 6), "members.b": torch.ones(6, 3)}
    assert term(student, teacher, {}).isfinite()
    with pytest.raises(ValueError, match=r"the teacher's members\.b gives 4 channels"):
        term(student, teacher | {"members.b": torch.ones(6, 4)}, {})


def test_layers_missing_on_one_side_are_refused():
    loss, z, h = with_representations(), torch.ones(6, 10), torch.ones(6, 5)
    zs, hs = torch.ones(6, 2, 10), [torch.ones(6, 6), torch.ones(6, 3)]
    for student, teacher, counts in (
        ([z], [zs, *hs], "0 representations of the student and 2 of the teachers"),
        ([z, h], [zs], "1 representations of the student and 0 of the teachers"),
        ([z, h, h], [zs, *hs], "2 representations of the student and 2 of the teachers"),
        ([z, h], [zs, *hs, h], "1 representations of the student and 3 of the teachers"),
    ):
        with pytest.raises(ValueError, match=rf"the term lists {counts}, but the loss was built for 1 and 2"):
            loss(student, teacher)
    with pytest.raises(ValueError, match="with the same N >= 2 samples"):
        loss([z[:1], h[:1]], [zs[:1], *(x[:1] for x in hs)])


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="teachers=1 must be at least 2"):
        ModalityGraphLoss(1)
    with pytest.raises(ValueError, match=r"prior=\[1.0\] must be one number above 0 for each of the 2 teachers"):
        ModalityGraphLoss(2, prior=[1.0])
    for name, wrong in (("prior", [1.0, 0.0]), ("prior", [1.0, -1.0]), ("prior", [1.0] * 3), ("teacher_channels", [4])):
        with pytest.raises(ValueError, match=rf"{name}=\[.*\] must be one number above 0 for each of the 2 teachers"):
            ModalityGraphLoss(2, **{name: wrong})
    with pytest.raises(ValueError, match="give both student_channels and teacher_channels"):
        ModalityGraphLoss(2, student_channels=4)
    with pytest.raises(ValueError, match="alpha=-1 must be a finite number, at least 0"):
        ModalityGraphLoss(2, alpha=-1)


def plain_modality_graph(m, s, t, y):
    (z, h), (zs, *hs) = s, t
    scores = m.logit_score(zs).squeeze(2) + torch.cat(
        [to(x) for to, x in zip(m.representation_scores, hs, strict=True)], 1
    )
    edges = (scores / 8).softmax(1)
    apart = 10 * (1 - F.cosine_similarity(z.unsqueeze(1), zs, dim=2))
    seen = zip(m.connectors, hs, strict=True)
    apart = apart + 1 - torch.stack([F.cosine_similarity(to(h), x, dim=1) for to, x in seen], 1)
    return ((edges + 0.5) * apart).sum(1).mean() + 10 * (edges.mean(0) - 0.5).square().sum()


PLAIN = {
    "ModalityGraphLoss": Plain(
        plain_modality_graph,
        [(N, 10), ROWS[0]],
        [(N, 2, 10), ROWS[1], ROWS[1]],
        build=lambda: losses.ModalityGraphLoss(2, 10, student_channels=128, teacher_channels=[512, 512]),
    ),
}

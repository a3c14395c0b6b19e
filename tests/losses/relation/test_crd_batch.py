import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses.relation.crd_batch import InBatchCRDLoss, in_batch_crd_loss
from tests.losses.case import Case, other_implementation
from tests.losses.plain import ROWS, Plain


def build(**given) -> InBatchCRDLoss:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InBatchCRDLoss(4, 5, dim=3, **given)


WRONG = [((6, 4), (5, 5)), ((1, 4), (1, 5)), ((0, 4), (0, 5)), ((6,), (6,))]
CASES = {
    "InBatchCRDLoss": Case(
        build, (6, 4), (6, 5), lambda: torch.tensor([0, 1, 2, 1, 0, 3]), minimum="elsewhere", wrong=WRONG
    )
}


def units(n: int, d: int, seed: int) -> Tensor:
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values / values.norm(dim=1, keepdim=True)


def naive(anchors: list[list[float]], others: list[list[float]], labels: list[int], temperature: float) -> float:
    total = 0.0
    for n, anchor in enumerate(anchors):
        likelihoods = [math.exp(sum(a * b for a, b in zip(anchor, row, strict=True)) / temperature) for row in others]
        total -= math.log(
            likelihoods[n] / sum(v for k, v in enumerate(likelihoods) if k == n or labels[k] != labels[n])
        )
    return total / len(anchors)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [7, 7, 7, 7, 7]])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_value_is_that_of_naive_loops_in_both_directions(labels, temperature):
    s, t = units(5, 4, 1), units(5, 4, 2)
    expected = naive(s.tolist(), t.tolist(), labels, temperature) + naive(t.tolist(), s.tolist(), labels, temperature)
    assert in_batch_crd_loss(s, t, torch.tensor(labels), temperature).item() == pytest.approx(expected, rel=1e-9)


def test_the_module_embeds_linearly_and_normalises():
    loss = build(temperature=0.2).double()
    s, t, labels = units(5, 4, 1), units(5, 5, 2), torch.tensor([0, 1, 0, 2, 3])
    embedded = [layer(x) for layer, x in ((loss.student_embedding, s), (loss.teacher_embedding, t))]
    s_rows, t_rows = ((x / x.norm(dim=1, keepdim=True)).tolist() for x in embedded)
    expected = naive(s_rows, t_rows, labels.tolist(), 0.2) + naive(t_rows, s_rows, labels.tolist(), 0.2)
    assert loss(s, t, labels).item() == pytest.approx(expected, rel=1e-9)


def test_pytorch_metric_learning_agrees_where_every_sample_is_a_class():
    one_way = other_implementation("pytorch_metric_learning.losses").NTXentLoss(temperature=0.07)
    s, t, labels, same = 3 * units(6, 4, 1).requires_grad_(), units(6, 4, 2), torch.arange(6), torch.arange(6)
    theirs = one_way(s, labels, ref_emb=t, ref_labels=same) + one_way(t, labels, ref_emb=s, ref_labels=same)
    ours = in_batch_crd_loss(s / s.norm(dim=1, keepdim=True), t, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in (ours, theirs)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", [torch.zeros(3, dtype=torch.long), torch.zeros(2), torch.zeros(2, 2)])
def test_targets_other_than_class_indices_are_refused(target):
    with pytest.raises(ValueError, match="must be class indices"):
        in_batch_crd_loss(torch.eye(2), torch.eye(2), target)


def test_a_missing_target_is_refused():
    with pytest.raises(ValueError, match="set the term's target"):
        build()(torch.zeros(2, 4), torch.zeros(2, 5))


def plain_in_batch_crd(m, s, t, y):
    s, t = F.normalize(m.student_embedding(s)), F.normalize(m.teacher_embedding(t))
    alike = (y == y.unsqueeze(1)).fill_diagonal_(False)
    logits = (s @ t.T / 0.07).masked_fill(alike, -math.inf)
    own = torch.arange(len(s))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


PLAIN = {
    "InBatchCRDLoss": Plain(plain_in_batch_crd, *ROWS, build=lambda: losses.InBatchCRDLoss(128, 512)),
}

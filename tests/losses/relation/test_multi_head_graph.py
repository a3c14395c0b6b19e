import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses.relation.multi_head_graph import MultiHeadGraphLoss, multi_head_graph_loss
from tests.losses import naive
from tests.losses.case import Case
from tests.losses.plain import STUDENTS, TEACHERS, WIDTHS, Plain

STUDENT, TEACHER = [(6, 3, 4, 4), (6, 4, 2, 2), (6, 5)], [(6, 3, 3, 3), (6, 6, 2, 2), (6, 5)]


def build(student_channels=(3, 4, 5), teacher_channels=(3, 6, 5), heads: int = 2) -> MultiHeadGraphLoss:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiHeadGraphLoss([*student_channels], [*teacher_channels], heads)


CASES = {
    "MultiHeadGraphLoss": Case(
        build,
        STUDENT,
        TEACHER,
        tolerance=1e-2,  # features that are nearly equal over the batch are standardised, their rounding with them
        wrong=[(STUDENT, [(6, 3, 3, 3), (6, 7, 2, 2), (6, 5)]), (STUDENT, [(5, 3), (6, 6), (6, 5)])],
    ),
    "MultiHeadGraphLoss of one width": Case(  # the estimator's part stays
        lambda: build((4, 5), (4, 5)), [(6, 4), (6, 5)], [(6, 4), (6, 5)], minimum="not zero"
    ),
}


def features(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def linear(layer: torch.nn.Linear, rows: list[list[float]]) -> list[list[float]]:
    biases = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [[dot(w, row) + b for w, b in zip(layer.weight.tolist(), biases, strict=True)] for row in rows]


def unit(rows: list[list[float]]) -> list[list[float]]:
    return [[value / math.hypot(*row) for value in row] for row in rows]


def standardised(rows: list[list[float]], like: list[list[float]]) -> list[list[float]]:
    means = [sum(column) / len(column) for column in zip(*like, strict=True)]
    variances = [sum((x - m) ** 2 for x in c) / len(c) for c, m in zip(zip(*like, strict=True), means, strict=True)]
    return [[(x - m) / math.sqrt(v + 1e-5) for x, m, v in zip(row, means, variances, strict=True)] for row in rows]


def heads_of(rows: list[list[float]], heads: int) -> list[list[list[float]]]:
    size = len(rows[0]) // heads
    return [[row[h * size : (h + 1) * size] for row in rows] for h in range(heads)]


@pytest.mark.parametrize("heads", [1, 2])
def test_value_is_that_of_naive_loops(heads: int):
    loss = build(heads=heads).double()
    s, t = features(STUDENT, 1), features(TEACHER, 2)
    means = [[(x.flatten(2).mean(2) if x.dim() > 2 else x).tolist() for x in side] for side in (s, t)]
    means[0][1] = linear(loss.connectors[1], means[0][1])  # the only layer of two widths
    (s, t) = ([unit(rows) for rows in side] for side in means)
    total = 0.0
    for k, graph in enumerate(loss.graphs):
        logits = []
        for side in (s, t):
            query = heads_of(linear(graph.query, standardised(side[k + 1], t[k + 1])), heads)
            key = heads_of(linear(graph.key, standardised(side[k], t[k])), heads)
            logits.append([[[dot(a, b) for b in key[h]] for a in query[h]] for h in range(heads)])
        for h in range(heads):
            for i in range(6):
                log_q, log_p = (naive.log_softmax([math.tanh(x) for x in logits[side][h][i]]) for side in (0, 1))
                total += sum(math.exp(q) * (q - p) for q, p in zip(log_q, log_p, strict=True)) / (heads * 6)
        values = [[max(x, 0) for x in row] for row in linear(graph.value, standardised(t[k], t[k]))]
        picked = [[] for _ in range(6)]
        for h in range(heads):
            for i in range(6):
                attention = naive.softmax(logits[1][h][i])
                picked[i] += [dot(attention, [*column]) for column in zip(*values, strict=True)]
        estimates = unit(linear(graph.join, picked))
        total += sum(1 - dot(a, b) for a, b in zip(estimates, t[k + 1], strict=True)) / 6
    again = features(STUDENT, 1), features(TEACHER, 2)
    assert loss(*again).item() == pytest.approx(total, rel=1e-9)


def test_the_heads_are_trained_on_the_teacher_alone():
    loss = build().double()
    gradients = []
    for seed in (1, 3):
        loss.zero_grad()
        loss(features(STUDENT, seed), features(TEACHER, 2)).backward()
        gradients.append({name: p.grad.clone() for name, p in loss.graphs.named_parameters()})
        assert all(p.grad.any() for p in loss.connectors.parameters())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(g.any() for g in gradients[0].values())


def test_a_head_is_as_wide_as_its_two_layers_on_average():
    loss = build((8, 4), (8, 5), heads=3)
    (graph,) = loss.graphs
    assert graph.value.out_features == 6
    assert graph.query.out_features == graph.key.out_features == graph.join.in_features == 18


def test_autocast_does_not_round_the_attention():
    loss = build()
    student, teacher = ([x.float() for x in features(shapes, seed)] for shapes, seed in ((STUDENT, 1), (TEACHER, 2)))
    exact = build().double()([x.double() for x in student], [x.double() for x in teacher])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(student, teacher)
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_large_logits_compare_by_their_signs_alone():
    teacher = torch.tensor([[[50.0, -50.0], [50.0, 50.0]]])
    assert multi_head_graph_loss(teacher / 2, teacher) == 0
    # a row of softmax(-1, 1) against softmax(1, -1) is 2 tanh(1); one of equal logits is 0; the mean is over both
    assert multi_head_graph_loss(-teacher, teacher).item() == pytest.approx(math.tanh(1), rel=1e-6)


def test_the_divergence_is_from_the_student_to_the_teacher():
    student, teacher = (
        torch.zeros(1, 1, 2),
        torch.tensor([[[math.atanh(math.log(3) / 2), math.atanh(-math.log(3) / 2)]]]),
    )
    # q = (1/2, 1/2) and p = (3/4, 1/4), by hand
    reverse = 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)
    forward = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert multi_head_graph_loss(student, teacher).item() == pytest.approx(reverse, rel=1e-5)
    assert multi_head_graph_loss(teacher, student).item() == pytest.approx(forward, rel=1e-5)


@pytest.mark.parametrize(("student", "teacher", "heads"), [([3], [3], 8), ([3, 4], [3, 4, 5], 8), ([3, 4], [3, 4], 0)])
def test_invalid_graphs_are_refused(student, teacher, heads):
    with pytest.raises(ValueError, match="must name the same number of layers, at least two"):
        MultiHeadGraphLoss(student, teacher, heads)


def test_another_number_of_layers_is_refused():
    with pytest.raises(ValueError, match="the term lists 2 layers, but the loss was built for 3"):
        build()(features(STUDENT[:2], 1), features(TEACHER[:2], 2))


def plain_heads(x):
    return x.unflatten(1, (8, -1)).transpose(0, 1)


def plain_frozen(linear, x):
    return F.linear(x, *(parameter.detach() for parameter in linear.parameters()))


def plain_multi_head_graph(m, s, t, y):
    t = [F.normalize(x.mean((2, 3))) for x in t]
    s = [F.normalize(to(x.mean((2, 3)))) for to, x in zip(m.connectors, s, strict=True)]
    s = [F.batch_norm(x, to.mean(0), to.var(0, correction=0)) for x, to in zip(s, t, strict=True)]
    seen, loss = [F.batch_norm(x, None, None, training=True) for x in t], 0
    for i, graph in enumerate(m.graphs):
        shown = plain_heads(graph.query(seen[i + 1])) @ plain_heads(graph.key(seen[i])).mT
        mine = plain_heads(plain_frozen(graph.query, s[i + 1])) @ plain_heads(plain_frozen(graph.key, s[i])).mT
        log_p, log_q = shown.detach().tanh().log_softmax(2), mine.tanh().log_softmax(2)
        picked = (shown.softmax(2) @ graph.value(seen[i]).relu()).transpose(0, 1).flatten(1)
        loss = loss + F.kl_div(log_p, log_q, reduction="sum", log_target=True) / log_q[:, :, 0].numel()
        loss = loss + 1 - F.cosine_similarity(graph.join(picked), t[i + 1]).mean()
    return loss


PLAIN = {
    "MultiHeadGraphLoss": Plain(
        plain_multi_head_graph, STUDENTS, TEACHERS, build=lambda: losses.MultiHeadGraphLoss(*WIDTHS)
    ),
}

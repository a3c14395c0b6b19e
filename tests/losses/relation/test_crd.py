import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning import losses
from kd_lightning.losses.relation import crd
from kd_lightning.losses.relation.crd import CRDLoss, crd_loss
from tests.losses.case import Case, classes
from tests.losses.plain import ROWS, N, Plain, labels


def build(training: bool = False, **given) -> CRDLoss:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CRDLoss(**{"student_channels": 4, "teacher_channels": 5, "num_samples": 8, "dim": 3} | given).train(
            training
        )


WRONG = [((6, 4), (5, 5)), ((1, 4), (1, 5)), ((0, 4), (0, 5)), ((6,), (6,))]


def begun(**given) -> CRDLoss:
    """Build a loss after its first batch, whose Z is constant in the gradient."""
    loss = build(training=True, negatives=7, **given)
    loss.log_means.fill_(1.0)
    return loss


CASES = {
    "CRDLoss": Case(
        begun,
        (6, 4),
        (6, 5),
        lambda: [classes(), torch.arange(6)],
        minimum="elsewhere",
        wrong=WRONG,
    )
}


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(row: list[float]) -> list[float]:
    return [value / math.hypot(*row) for value in row]


def embedding(layer: nn.Linear, row: list[float]) -> list[float]:
    weights, bias = layer.weight.tolist(), layer.bias.tolist()
    return unit([sum(w * x for w, x in zip(ws, row, strict=True)) + b for ws, b in zip(weights, bias, strict=True)])


def published(out: list[list[float]], z: float, n: int) -> float:
    """The published code's loss, with its 1e-7, of probabilities: for each sample the positive, then the negatives."""
    total = 0.0
    for row in out:
        noise = (len(row) - 1) / n
        positive, *negatives = (value / z for value in row)
        total -= math.log(positive / (positive + noise + 1e-7))
        total -= sum(math.log(noise / (value + noise + 1e-7)) for value in negatives)
    return total / len(out)


def test_three_steps_are_those_of_the_published_code():
    """With two images of two classes, every negative of one image is the other."""
    n, k, tau, momentum = 8, 3, 0.2, 0.3
    loss = build(training=True, negatives=k, temperature=tau, momentum=momentum).double()
    banks, index, z = [loss.student_bank.tolist(), loss.teacher_bank.tolist()], [6, 1], [0.0, 0.0]
    for step in range(3):
        s, t = rows(2, 4, seed=step), rows(2, 5, seed=10 + step)
        value = loss(s, t, [torch.tensor([1, 0]), torch.tensor(index)]).item()
        anchors = [[embedding(loss.student_embedding, row) for row in s.tolist()]]
        anchors.append([embedding(loss.teacher_embedding, row) for row in t.tolist()])
        expected = 0.0
        for side in (0, 1):
            out = []
            for i in (0, 1):
                own, other = banks[1 - side][index[i]], banks[1 - side][index[1 - i]]
                dots = [sum(a * b for a, b in zip(anchors[side][i], row, strict=True)) for row in (own, other)]
                out.append([math.exp(dots[0] / tau)] + [math.exp(dots[1] / tau)] * k)
            z[side] = z[side] or n * sum(map(sum, out)) / (2 * (k + 1))
            expected += published(out, z[side], n)
        assert value == pytest.approx(expected, rel=1e-5)
        for side in (0, 1):
            for i in (0, 1):
                moved = zip(banks[side][index[i]], anchors[side][i], strict=True)
                banks[side][index[i]] = unit([momentum * old + (1 - momentum) * new for old, new in moved])
        torch.testing.assert_close(loss.student_bank.tolist(), banks[0])
        torch.testing.assert_close(loss.teacher_bank.tolist(), banks[1])


def test_the_banks_begin_with_rows_of_length_about_one_in_all_directions():
    """Uniform up to the root of 3 / dim, as published."""
    loss = build(num_samples=500, dim=12)
    for bank in (loss.student_bank, loss.teacher_bank):
        assert bank.abs().max().item() == pytest.approx(math.sqrt(3 / 12), rel=0.01)
        assert bank.mean().item() == pytest.approx(0, abs=0.02)
        assert bank.norm(dim=1).square().mean().item() == pytest.approx(1, rel=0.05)
    assert not torch.equal(loss.student_bank, loss.teacher_bank)


def test_z_has_no_gradient_in_the_batch_that_determines_it_either():
    loss = build(training=True, negatives=5).double()
    s, t, target = rows(6, 4, seed=1).requires_grad_(), rows(6, 5, seed=2), [classes(), torch.arange(6)]
    again = copy.deepcopy(loss)
    found = loss(s, t, target)
    again.log_means.copy_(loss.log_means)  # as a constant
    expected = again(s, t, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(value, s)[0] for value in (found, expected)))
    assert not loss.log_means.requires_grad


def test_one_negative_of_one_dimension_is_enough():
    loss = build(training=True, num_samples=2, dim=1, negatives=1).double()
    banks, target = [loss.teacher_bank.clone(), loss.student_bank.clone()], [torch.tensor([1, 0]), torch.arange(2)]
    s, t = rows(2, 4, seed=1), rows(2, 5, seed=2)
    sides = [crd.embed(loss.student_embedding, s, "student"), crd.embed(loss.teacher_embedding, t, "teacher")]
    expected = 0.0
    for anchors, bank in zip(sides, banks, strict=True):
        ratios = (anchors @ bank.T / 0.07).exp()  # the other image is the only negative of each
        ratios = ratios / ratios.mean()
        expected -= sum((ratios[i, i] / (ratios[i, i] + 1)).log() + (1 / (ratios[i, 1 - i] + 1)).log() for i in (0, 1))
    assert loss(s, t, target).item() == pytest.approx(expected.item() / 2, rel=1e-9)
    with pytest.raises(ValueError, match=r"num_samples=0, dim=128 and negatives=16384 must be at least 1"):
        CRDLoss(4, 5, num_samples=0)


def test_all_of_many_images_are_drawn():
    loss = build(num_samples=600, negatives=20_000)
    loss.labels.copy_(torch.arange(600) % 3)
    known, draws, _ = loss._draw(loss.labels, torch.tensor([0]))
    counts = known[draws].flatten().bincount(minlength=600)
    assert not counts[0::3].any()
    others = counts[torch.arange(600) % 3 > 0]
    assert others.min() > 15  # of 50 on average
    assert others.max() < 100


def test_negatives_are_drawn_evenly_from_known_images_of_other_classes():
    loss = build(training=True, num_samples=20, negatives=6000)
    seen = {0: [3, 17], 1: [5], 2: [0, 4, 11]}
    for label, index in seen.items():
        index = torch.tensor([*index, index[0]])
        loss(rows(len(index), 4, seed=1), rows(len(index), 5, seed=2), [torch.full_like(index, label), index])
    known, draws, is_negative = loss._draw(loss.labels, torch.tensor([0, 1, 2]))
    assert is_negative.all()
    for label, drawn in enumerate(known[draws].tolist()):
        others = [row for other, rows_of in seen.items() if other != label for row in rows_of]
        assert sorted(set(drawn)) == sorted(others)
        for row in others:
            assert drawn.count(row) == pytest.approx(6000 / len(others), rel=0.1)


def test_each_call_draws_new_negatives_and_a_restored_loss_draws_the_same():
    def step(loss: CRDLoss, seed: int) -> Tensor:
        target = [torch.tensor([0, 1, 2, 3]), torch.tensor([6, 2, 0, 5])]
        return loss(rows(4, 4, seed=seed), rows(4, 5, seed=seed), target)

    loss = build(training=True, negatives=40)
    draws = []
    for seed in range(3):
        step(loss, seed)
        draws.append(loss._draw(loss.labels, torch.tensor([0]))[1])
    assert not torch.equal(draws[1], draws[2])  # of the same images
    again = build(training=True, negatives=40)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(step(again, 3), step(loss, 3))
    assert torch.equal(step(again, 4), step(loss, 4))


def values(loss: CRDLoss, steps: int = 3) -> list[Tensor]:
    """Return losses and student gradients of a few steps, in the last of which an image is twice in the batch."""
    found: list[Tensor] = []
    for step in range(steps):
        s, t = rows(4, 4, seed=step).float().requires_grad_(), rows(4, 5, seed=step).float()
        loss_value = loss(s, t, [torch.tensor([0, 1, 2, 3]), torch.tensor([6, 2, 0, 5 if step < steps - 1 else 2])])
        found += [loss_value.detach(), *torch.autograd.grad(loss_value, s)]
    return found


def test_a_restored_loss_forgets_what_it_has_read_before():
    loss, other = build(training=True, negatives=40), build(training=True, negatives=40)
    values(loss)
    state = loss.state_dict()
    values(other, steps=5)  # counts, and Z, of another run
    other.load_state_dict(state)
    assert all(torch.equal(one, two) for one, two in zip(values(loss), values(other), strict=True))


def test_buffers_are_read_once(monkeypatch):
    loss = build(training=True, negatives=40)
    values(loss, steps=1)
    written: list[int] = []
    remember = loss._remember
    monkeypatch.setattr(loss, "_remember", lambda calls, is_begun: (written.append(calls), remember(calls, is_begun)))
    values(loss)
    assert written == [int(loss.calls) - 2, int(loss.calls) - 1, int(loss.calls)]  # by each step, of what it wrote


def test_images_not_seen_yet_need_not_be_left_out_on_the_host(monkeypatch):
    expected = values(build(training=True, negatives=40))
    draw = CRDLoss._draw
    monkeypatch.setattr(CRDLoss, "_draw", lambda self, labels, label, seen_only: draw(self, labels, label, False))
    for found, one in zip(values(build(training=True, negatives=40)), expected, strict=True):
        torch.testing.assert_close(found, one)


def test_few_negatives_of_many_images_are_compared_alone():
    loss = build(training=True, negatives=2, num_samples=100)
    loss.labels.copy_(torch.arange(100) % 10)
    known, draws, _ = loss._draw(loss.labels, torch.arange(4))
    anchors = rows(4, 3, seed=1).float()
    assert draws.shape[1] * 3 < 100
    expected = (anchors.unsqueeze(1) * loss.student_bank[known[draws]]).sum(dim=2)
    torch.testing.assert_close(crd._cosines(anchors, loss.student_bank, known, draws), expected)
    torch.testing.assert_close(crd._cosines(anchors, loss.student_bank, known, draws.repeat(1, 30))[:, :2], expected)


def test_of_an_image_that_is_twice_in_a_batch_the_last_is_kept():
    loss = build(training=True, negatives=5)
    s, t = rows(3, 4, seed=1).float(), rows(3, 5, seed=2).float()
    before = loss.student_bank.clone()
    loss(s, t, [torch.tensor([0, 1, 2]), torch.tensor([6, 3, 6])])
    embedded = crd.embed(loss.student_embedding, s, "student").detach()
    kept = torch.nn.functional.normalize((embedded[2] + before[6]) / 2, dim=0)
    torch.testing.assert_close(loss.student_bank[6], kept)
    assert loss.labels.tolist() == [-1, -1, -1, 1, -1, -1, 2, -1]


def test_an_image_without_a_label_is_no_negative():
    loss = build(training=True, negatives=50)
    loss(rows(3, 4, seed=1).float(), rows(3, 5, seed=2).float(), [torch.tensor([0, -100, 2]), torch.tensor([6, 3, 1])])
    for seen_only in (True, False):
        known, draws, is_negative = loss._draw(loss.labels, torch.tensor([0, -100, 2]), seen_only)
        assert is_negative.all()
        assert [set(drawn) for drawn in known[draws].tolist()] == [{1}, {1, 6}, {6}]


def test_gradients_are_those_of_the_banks_before_their_update():
    gradients = []
    for training in (False, True):
        loss = build(training, negatives=5).double()
        s, t = rows(6, 4, seed=1).requires_grad_(), rows(6, 5, seed=2)
        before = loss.student_bank.clone()
        loss(s, t, [classes(), torch.arange(6)]).backward()
        gradients.append((s.grad, loss.student_embedding.weight.grad, loss.teacher_embedding.weight.grad))
        assert torch.equal(before, loss.student_bank) is not training
        assert torch.equal(before[6:], loss.student_bank[6:])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_of_one_class_has_no_negatives_yet():
    loss = build(training=True, negatives=5)
    s, t = rows(2, 4, seed=1).float(), rows(2, 5, seed=2).float()
    own = [
        (crd.embed(loss.student_embedding, s, "student") * loss.teacher_bank[:2]).sum(dim=1).detach() / 0.07,
        (crd.embed(loss.teacher_embedding, t, "teacher") * loss.student_bank[:2]).sum(dim=1).detach() / 0.07,
    ]
    value = loss(s, t, [torch.tensor([3, 3]), torch.tensor([0, 1])])
    ratios = [x.exp() / x.exp().mean() for x in own]
    assert value.item() == pytest.approx(-sum((r / (r + 5)).log().mean().item() for r in ratios), rel=1e-5)
    value.backward()
    assert 0 < value < 2 * (math.log(5 + 1) + 2 / 0.07)
    assert loss.log_means.isfinite().all()
    assert loss.student_embedding.weight.grad.isfinite().all()


def test_the_loss_is_smallest_for_a_likely_positive_and_unlikely_negatives():
    assert crd_loss(torch.tensor([9.0]), torch.tensor([[-9.0, -math.inf]])) < 1e-3
    assert crd_loss(torch.tensor([-9.0]), torch.tensor([[-9.0, -math.inf]])) > 9


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(2, dtype=torch.long), r"target \[\] for 2 samples"),
        ([torch.zeros(2, dtype=torch.long), None], r"target \[\(2,\)\] for 2 samples"),
        ([torch.zeros(2, dtype=torch.long), torch.arange(3)], r"target \[\(2,\), \(3,\)\] for 2 samples"),
        ([torch.zeros(2), torch.arange(2)], r"target \[\(2,\), \(2,\)\] for 2 samples"),
        (
            [torch.zeros(2, dtype=torch.long), torch.tensor([1, 8])],
            "index 8 is not below num_samples=8: set num_samples",
        ),
        (
            [torch.zeros(2, dtype=torch.long), torch.tensor([1, -1])],
            "index -1 is negative: number the rows of the full training set from 0",
        ),
        (None, r"set the term's target to \[target, index\]"),
    ],
)
def test_targets_other_than_class_and_image_indices_are_refused(target, message):
    with pytest.raises(ValueError, match=message):
        build()(rows(2, 4, seed=1), rows(2, 5, seed=2), target)


def test_an_index_out_of_range_is_refused_in_a_later_batch_too():
    loss, s, t = build(training=True), rows(2, 4, seed=1).float(), rows(2, 5, seed=2).float()
    loss(s, t, [torch.arange(2), torch.tensor([0, 7])])
    with pytest.raises(ValueError, match="index 8 is not below num_samples=8"):
        loss(s, t, [torch.arange(2), torch.tensor([0, 8])])
    with pytest.raises(ValueError, match="index -1 is negative"):
        loss(s, t, [torch.arange(2), torch.tensor([0, -1])])


def test_autocast_does_not_round_the_embeddings():
    loss, s, t = build(training=True, negatives=5), rows(6, 4, seed=1).float(), rows(6, 5, seed=2).float()
    in_double = copy.deepcopy(loss).double()
    expected = in_double(s.double(), t.double(), [classes(), torch.arange(6)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(s, t, [classes(), torch.arange(6)])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(loss.student_bank, in_double.student_bank.float())


@pytest.mark.parametrize("given", [{"num_samples": 0}, {"dim": 0}, {"negatives": 0}, {"momentum": 1.5}])
def test_arguments_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        build(**given)


def plain_crd(m, s, t, y):
    label, index = y
    s, t = F.normalize(m.student_embedding(s)), F.normalize(m.teacher_embedding(t))
    m.labels[index] = label
    counts = m.labels.bincount(minlength=10)
    own, first = counts[label].unsqueeze(1), (counts.cumsum(0) - counts)[label].unsqueeze(1)
    generator = torch.Generator().manual_seed(int(m.calls))
    draws = torch.randint(2**62, (len(s), m.negatives), generator=generator) % (len(m.labels) - own)
    draws = m.labels.argsort(stable=True)[draws + own * (draws >= first)]
    loss, noise = 0, math.log(m.negatives)
    for x, bank, log_mean in ((s, m.teacher_bank, m.log_means[0]), (t, m.student_bank, m.log_means[1])):
        positive = (x * bank[index]).sum(1) / 0.07 - log_mean
        negative = (x @ bank.clone().T).gather(1, draws) / 0.07 - log_mean  # the bank moves before the backward
        loss = loss + (F.softplus(noise - positive).sum() + F.softplus(negative - noise).sum()) / len(x)
    m.calls += 1
    for x, bank in ((s, m.student_bank), (t, m.teacher_bank)):
        bank[index] = F.normalize(torch.lerp(x.detach(), bank[index], 0.5))
    return loss


def plain_full_banks() -> nn.Module:
    """Contrastive representation distillation in the midst of training: every image was seen."""
    loss = losses.CRDLoss(128, 512, num_samples=10_000, negatives=4096)
    loss.labels.copy_(torch.arange(10_000) % 10)
    loss.log_means.fill_(1.0)
    return loss


PLAIN = {
    "CRDLoss": Plain(plain_crd, *ROWS, build=plain_full_banks, target=lambda: [labels(), torch.arange(N)]),
}

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import Term
from kd_lightning.data import MNIST, SameClassPairs
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.schemes import CSKD
from tests import toys

LEARNING_RATE = 0.1


def learner(network: nn.Module | None = None, weight: float = 3.0) -> CSKD:
    terms = {"task": Term(TaskLoss(), teacher=None), "same_class": Term(KDLoss(4.0), weight=weight)}
    return CSKD(
        network or toys.network(), terms, optimizer=lambda parameters: torch.optim.SGD(parameters, LEARNING_RATE)
    )


def pairs(**changes) -> SameClassPairs:
    given = {"num_channels": 3, "batch_size": 16, "train_size": 64, "val_size": 0, "augmentation": toys.Noise()}
    return SameClassPairs(MNIST(), **given | changes)


CASES = {"cs_kd": lambda: toys.Case(learner(), data=pairs)}


def batch(seed: int = 0, count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(10, (count,), generator=generator)
    return torch.rand(2 * count, 3, 28, 28, generator=generator), target.repeat(2)


# ---- the step against the formulas


def by_hand(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The paper's loss: CE(x) + lambda T^2 KL(P(x') || P(x)); x and x' in two passes, as in the authors' code."""
    logits = network(x[:5])
    with torch.no_grad():
        partner = network(x[5:])
    task = same_class = torch.zeros((), dtype=x.dtype)
    for own, other, label in zip(logits, partner, y[:5], strict=True):
        p, q = (other / 4).softmax(0), (own / 4).softmax(0)
        task = task + (own.logsumexp(0) - own[label]) / 5
        same_class = same_class + 16 * (p * (p.log() - q.log())).sum() / 5
    return {"task": task, "same_class": same_class}


def test_three_steps_are_those_of_the_paper():
    own = learner().double()
    network = copy.deepcopy(own.student)
    optimizer = own.configure_optimizers()
    for step in range(3):
        x, y = batch(seed=step)
        torch.manual_seed(step)
        losses = own.compute_losses((x.double(), y))
        optimizer.zero_grad()
        own.weighted_sum(losses).backward()
        optimizer.step()

        torch.manual_seed(step)
        expected = by_hand(network, x.double(), y)
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss, rtol=1e-9, atol=1e-12)
            assert loss > 0.01
        total = expected["task"] + 3 * expected["same_class"]
        gradients = torch.autograd.grad(total, [*network.parameters()])
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= LEARNING_RATE * gradient
    for name, value in network.state_dict().items():  # BatchNorm's statistics of both halves among them
        torch.testing.assert_close(own.student.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_the_partner_gets_no_gradient_and_changes_the_loss():
    x, y = batch()
    x.requires_grad_()
    own = learner()
    losses = own.compute_losses((x, y))
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert gradient[:5].any()
        assert not gradient[5:].any()
    other = torch.cat((x[:5], x[5:].flip(0))).detach()
    torch.manual_seed(0)
    first = own.compute_losses((x, y))
    torch.manual_seed(0)
    second = own.compute_losses((other, y))
    assert torch.equal(first["task"], second["task"])
    assert not torch.equal(first["same_class"], second["same_class"])


def test_labels_by_any_name_and_inputs_by_name_are_halved_as_well():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.body(left - right)

    own = learner(Named())
    for name in ("task", "same_class"):
        own.terms[name].target = "label"
    left, right, label = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = own.compute_losses({"left": left, "right": right, "label": label})
    logits = own.student(left, right)
    assert torch.equal(losses["task"], nn.functional.cross_entropy(logits[:3], label[:3]))
    torch.testing.assert_close(losses["same_class"], KDLoss(4.0)(logits[:3], logits[3:]))


# ---- errors


def test_a_batch_with_an_odd_number_of_rows_raises():
    x, y = batch()
    with pytest.raises(ValueError, match="a batch of 9 rows cannot be halved: use the data module SameClassPairs"):
        learner().compute_losses((x[:9], y[:9]))


def test_data_without_partners_raises(tmp_path):
    with pytest.raises(ValueError, match="two halves of a batch have different classes: use the data module SameCl"):
        toys.trainer(tmp_path).fit(learner(), toys.data())
    x, y = batch()
    with pytest.raises(ValueError, match="have different classes"):
        learner().on_train_batch_start((x, y.sort().values), 0)
    learner().on_train_batch_start((x, y.sort().values), 1)  # checked at the epoch's start only
    learner().on_train_batch_start((x, y), 0)


def test_data_without_labels_is_not_checked():
    own = learner()
    del own.terms["task"]
    own.on_train_batch_start(batch()[0], 0)
    assert own.compute_losses(batch()[0]).keys() == {"same_class"}

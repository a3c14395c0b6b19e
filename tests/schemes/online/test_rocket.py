from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term
from kd_lightning.losses import LogitMSELoss, TaskLoss
from kd_lightning.networks import ConvNet, StudentConvNet
from kd_lightning.schemes.online.rocket import RocketLaunching
from tests import toys


def booster() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def rocket() -> RocketLaunching:
    terms = {"task": Term(TaskLoss(), teacher=None), "hint": Term(LogitMSELoss(), weight=0.3)}
    return RocketLaunching(toys.network(seed=1), booster(), "2", terms)


CASES = {"rocket": lambda: toys.Case(rocket())}


def batches(n: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.rand(16, 3, 28, 28, generator=generator).double(), torch.randint(10, (16,), generator=generator))
        for _ in range(n)
    ]


def test_three_steps_written_out():
    learner = rocket().double()
    light, heavy = copy.deepcopy(learner.student), copy.deepcopy(learner.booster)
    ours = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD([*light.parameters(), *heavy.parameters()], lr=0.1, momentum=0.9)
    for step, (x, y) in enumerate(batches()):
        torch.manual_seed(step)
        losses = learner.compute_losses((x, y))
        ours.zero_grad()
        learner.weighted_sum(losses).backward()
        ours.step()

        torch.manual_seed(step)
        shared = light[:3](x)
        z_l, z_b = light[3:](shared), heavy(shared)
        # as in the authors' code: 0.03 times the squared differences, summed over the classes, for each sample
        hint = 0.03 * ((z_b.detach() - z_l) ** 2).sum() / 16
        task = functional.cross_entropy(z_l, y) + functional.cross_entropy(z_b, y)
        theirs.zero_grad()
        (task + hint).backward()
        theirs.step()
        assert losses["task"].item() == pytest.approx(task.item(), rel=1e-12)
        assert 0.3 * losses["hint"].item() == pytest.approx(hint.item(), rel=1e-12)
        assert hint > 1e-3

    trained = [*learner.student.state_dict().items(), *learner.booster.state_dict().items()]
    truth = [*light.state_dict().values(), *heavy.state_dict().values()]
    for (name, value), true in zip(trained, truth, strict=True):
        assert torch.allclose(value, true, rtol=0, atol=1e-10), name


def test_the_hint_has_gradients_in_the_student_alone():
    learner, (batch,) = rocket().double(), batches(1)
    losses = learner.compute_losses(batch)
    own = list(learner.booster.parameters())
    assert all(g is None for g in torch.autograd.grad(losses["hint"], own, retain_graph=True, allow_unused=True))
    assert all(g.any() for g in torch.autograd.grad(losses["task"], own[-2:], retain_graph=True))
    for parameter in (learner.student[2].weight, learner.student[6].weight):
        assert torch.autograd.grad(losses["hint"], parameter, retain_graph=True)[0].any()


def test_the_shared_layers_learn_from_the_labels_through_both_networks():
    learner, ((x, y),) = rocket().double().eval(), batches(1)
    weight = learner.student[2].weight
    both = torch.autograd.grad(learner.compute_losses((x, y))["task"], weight)[0]
    shared = learner.student[:3](x)
    by_light = torch.autograd.grad(functional.cross_entropy(learner.student[3:](shared), y), weight)[0]
    shared = learner.student[:3](x)
    by_booster = torch.autograd.grad(functional.cross_entropy(learner.booster(shared), y), weight)[0]
    assert by_booster.any()
    assert torch.allclose(both, by_light + by_booster, rtol=0, atol=1e-12)


def test_the_student_is_the_inference_network_and_both_are_evaluated(tmp_path):
    learner, x = rocket().eval(), torch.rand(5, 3, 28, 28)
    assert torch.equal(learner(x), learner.student(x))
    logits = learner.evaluated_logits(x)
    assert torch.equal(logits["student"], learner.student(x))
    assert torch.equal(logits["booster"], learner.booster(learner.student[:3](x)))
    (measured,) = toys.trainer(tmp_path).validate(learner, toys.data(val_size=50), verbose=False)
    assert measured["val/nll"] == measured["val/nll/student"] != measured["val/nll/booster"]


def test_terms_address_each_network_by_its_own_layer_names():
    terms = {"hint": Term(LogitMSELoss(), student="3", teacher="4")}
    light = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    heavy = nn.Sequential(nn.Tanh(), nn.Linear(6, 9), nn.Tanh(), nn.Tanh(), nn.Linear(9, 5), nn.Linear(5, 5))
    learner = RocketLaunching(light, heavy, "1", terms)
    x = torch.randn(7, 4)
    expected = (light(x) - heavy[:5](light[:2](x))).square().mean()
    assert torch.allclose(learner.compute_losses((x, torch.zeros(7)))["hint"], expected)


def test_invalid_layers_and_boosters_raise():
    terms = {"task": Term(TaskLoss(), teacher=None)}
    with pytest.raises(ValueError, match=r"StudentConvNet has no layer 'conv1'; the nearest names are conv\.1"):
        RocketLaunching(StudentConvNet(), ConvNet(8, in_channels=32), "conv1", terms)
    student = StudentConvNet()
    with pytest.raises(ValueError, match="student and booster share parameters"):
        RocketLaunching(student, nn.Sequential(student.conv[2:], nn.Flatten(), nn.Linear(512, 10)), "conv.1", terms)
    learner = RocketLaunching(student, ConvNet(8), "conv.1", terms)
    remedy = r"the booster cannot take the output \(2, 32, 13, 13\) of .* 'conv.1' .*: build it .* in_channels=32"
    with pytest.raises(ValueError, match=remedy):
        learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7])))
    learner = RocketLaunching(student, ConvNet(8, 32, num_classes=5), "conv.1", {"hint": Term(LogitMSELoss())})
    with pytest.raises(ValueError, match=r"student logits \(2, 10\) and teacher logits \(2, 5\)"):
        learner.compute_losses((torch.zeros(2, 3, 28, 28), torch.tensor([3, 7])))

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term, load_student
from kd_lightning.callbacks import SigmoidRampUp, TermWeightSchedule
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import StudentConvNet
from kd_lightning.schemes.online.one import ONE
from kd_lightning.weights.export import export_student
from tests import toys


def one(branches: int = 3, kd: float = 1.0) -> ONE:
    terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=3.0), weight=kd)}
    return ONE(toys.network(seed=1), ["0", "1", "2"], gate_features=8, terms=terms, num_branches=branches)


def case() -> toys.Case:
    return toys.Case(one(), [TermWeightSchedule("kd", SigmoidRampUp(1.0, duration=10))])


CASES = {"one": case}


def batches(n: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.rand(16, 3, 28, 28, generator=generator).double(), torch.randint(10, (16,), generator=generator))
        for _ in range(n)
    ]


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student), averaged over the rows."""
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    return (p * (p.log() - q.log())).sum() / len(p)


def test_three_steps_written_out():
    learner = one(kd=0.7).double()
    # the same modules by hand: the lower layers, three copies of the upper ones, and the gate's two layers
    lower, first = copy.deepcopy(learner.student[:3]), copy.deepcopy(learner.student[3:])
    uppers = [first, *(copy.deepcopy(other[3:]) for other in learner.branches)]
    linear, norm = copy.deepcopy(learner.gate.linear), copy.deepcopy(learner.gate.norm)
    reference = nn.ModuleList([lower, *uppers, linear, norm])

    ours = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step, (x, y) in enumerate(batches()):
        torch.manual_seed(step)
        losses = learner.compute_losses((x, y))
        ours.zero_grad()
        learner.weighted_sum(losses).backward()
        ours.step()

        torch.manual_seed(step)
        features = lower(x)
        z = [upper(features) for upper in uppers]
        gate = torch.relu(norm(linear(features))).softmax(dim=1)
        z_e = gate[:, 0:1] * z[0] + gate[:, 1:2] * z[1] + gate[:, 2:3] * z[2]
        task = sum(functional.cross_entropy(logits, y) for logits in [*z, z_e])
        kd = sum(9.0 * kl(z_e.detach(), logits, 3.0) for logits in z)
        theirs.zero_grad()
        (task + 0.7 * kd).backward()
        theirs.step()
        assert losses["task"].item() == pytest.approx(task.item(), rel=1e-12)
        assert losses["kd"].item() == pytest.approx(kd.item(), rel=1e-9)
        assert kd > 1e-3

    trained = [learner.student[:3], learner.student[3:], *(other[3:] for other in learner.branches)]
    trained = nn.ModuleList([*trained, learner.gate.linear, learner.gate.norm])
    for (name, value), truth in zip(trained.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(value, truth, rtol=0, atol=1e-10), name


def test_the_ensemble_learns_from_the_labels_alone():
    learner, (batch,) = one().double(), batches(1)
    losses = learner.compute_losses(batch)
    gate = list(learner.gate.parameters())
    assert all(g is None for g in torch.autograd.grad(losses["kd"], gate, retain_graph=True, allow_unused=True))
    assert all(g.any() for g in torch.autograd.grad(losses["task"], gate[2:], retain_graph=True))
    lowest = learner.student[2].weight
    assert torch.autograd.grad(losses["kd"], [lowest])[0].any()  # shared layers learn from every branch


def test_the_inference_network_is_the_student_and_the_ensemble_can_be_exported(tmp_path):
    learner, (batch,) = one(branches=2).eval(), batches(1)
    x = batch[0].float()
    logits = learner.evaluated_logits(x)
    assert list(logits) == ["student", "branches.0", "ensemble"]
    assert learner.inference_network_name == "student"
    assert torch.equal(learner(x), learner.student(x))
    assert torch.equal(logits["student"], learner.student(x))
    gate = learner.gate(learner.student[:3](x))
    mean = gate[:, :1] * logits["student"] + gate[:, 1:] * logits["branches.0"]
    assert torch.allclose(logits["ensemble"], mean, rtol=0, atol=1e-6)

    path = export_student(learner.ensemble, tmp_path / "ensemble.safetensors")
    other = one(branches=2)
    for parameter in other.parameters():
        nn.init.ones_(parameter)
    assert torch.equal(load_student(path, other.ensemble)(x), logits["ensemble"])


def test_all_branches_and_the_ensemble_are_evaluated(tmp_path):
    learner = one()
    trainer = toys.trainer(tmp_path)
    (measured,) = trainer.validate(learner, toys.data(val_size=50, eval_batch_size=16), verbose=False)
    names = ["student", "branches.0", "branches.1", "ensemble"]
    assert measured.keys() == {f"val/{m}{n}" for m in ("acc", "nll") for n in ["", *(f"/{name}" for name in names)]}
    assert measured["val/acc"] == measured["val/acc/student"]
    assert len({measured[f"val/nll/{name}"] for name in names}) == 4


def test_the_shared_layers_run_once_and_exist_once():
    learner = one()
    runs: list[int] = []
    learner.compute_losses((torch.rand(16, 3, 28, 28), torch.zeros(16, dtype=torch.int64)))
    learner.student[2].register_forward_hook(lambda *_: runs.append(1))
    learner.compute_losses((torch.rand(16, 3, 28, 28), torch.zeros(16, dtype=torch.int64)))
    assert len(runs) == 1
    below, above = 147 * 8 + 8, 16 + 80 + 10
    assert sum(p.numel() for p in learner.parameters()) == below + 3 * above + (8 * 3 + 3) + 6


def test_invalid_branches_raise():
    terms = {"task": Term(TaskLoss(), teacher=None)}
    with pytest.raises(ValueError, match="num_branches=1 must be at least 2"):
        ONE(StudentConvNet(), ["conv.0"], 32, terms, num_branches=1)
    batch = (torch.zeros(2, 3, 28, 28), torch.tensor([3, 7]))
    with pytest.raises(ValueError, match=r"omits conv.0, which run below the branching point 'conv.1'"):
        ONE(StudentConvNet(), ["conv.1"], 32, terms).compute_losses(batch)
    with pytest.raises(
        ValueError, match=r"gate_features=64, but the last shared layer gives \(2, 32, 13, 13\): set gate_features"
    ):
        ONE(StudentConvNet(), ["conv.0", "conv.1"], 64, terms).compute_losses(batch)
    hint = {"hint": Term(KDLoss(), student="conv.3", teacher="conv.3")}
    with pytest.raises(ValueError, match=r"compares the student's 'conv.3', and only logits was recorded"):
        ONE(StudentConvNet(), ["conv.0", "conv.1"], 32, hint).compute_losses(batch)

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term, load_student
from kd_lightning.__main__ import main
from kd_lightning.callbacks import SigmoidRampUp, TermWeightSchedule
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks.wrappers.fusion import FeatureFusion
from kd_lightning.schemes.online.ffl import FFL
from tests import toys


def member(width: int, seed: int, stride: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.AvgPool2d(4),
        nn.Conv2d(3, width, 3, stride=stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(width, 10),
    )


def ffl(deploy: str = "student", members: int = 2, kd: float = 1.0) -> FFL:
    terms = {"task": Term(TaskLoss(), teacher=None), "kd": Term(KDLoss(temperature=3.0), weight=kd)}
    networks = [member(8, seed=1), member(12, seed=2, stride=1), member(6, seed=3)][:members]
    return FFL(FeatureFusion(networks, ["3"] * members, [8, 12, 6][:members]), terms, deploy)


def case(deploy: str = "student") -> toys.Case:
    return toys.Case(ffl(deploy), [TermWeightSchedule("kd", SigmoidRampUp(1.0, duration=10))])


CASES = {"ffl": case, "ffl_member": lambda: case("student.members.1")}


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


@pytest.mark.parametrize("members", [2, 3])
def test_three_steps_written_out(members):
    learner = ffl(members=members, kd=0.7).double()
    reference = copy.deepcopy(learner.student)
    ours = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step, (x, y) in enumerate(batches()):
        torch.manual_seed(step)
        losses = learner.compute_losses((x, y))
        ours.zero_grad()
        learner.weighted_sum(losses).backward()
        ours.step()

        torch.manual_seed(step)
        maps, z = [], []
        for network in reference.members:
            features = network[:4](x)
            maps.append(features if features.shape[2] == 3 else functional.adaptive_avg_pool2d(features, 3))
            z.append(network[4:](features))
        z_f = reference.classifier(reference.fusion(torch.cat(maps, dim=1)).flatten(2).mean(dim=2))
        z_m = sum(z) / members
        task = sum(functional.cross_entropy(logits, y) for logits in [*z, z_f])
        kd = 9.0 * (sum(kl(z_f.detach(), logits, 3.0) for logits in z) + kl(z_m.detach(), z_f, 3.0))
        theirs.zero_grad()
        (task + 0.7 * kd).backward()
        theirs.step()
        assert losses["task"].item() == pytest.approx(task.item(), rel=1e-12)
        assert losses["kd"].item() == pytest.approx(kd.item(), rel=1e-9)
        assert kd > 1e-3

    for (name, value), truth in zip(learner.student.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(value, truth, rtol=0, atol=1e-10), name


def test_the_teaching_side_gets_no_gradient():
    learner, (batch,) = ffl().double(), batches(1)
    kd = learner.compute_losses(batch)["kd"]
    student = learner.student
    assert torch.autograd.grad(kd, student.classifier.weight, retain_graph=True)[0].any()
    assert all(torch.autograd.grad(kd, network[7].weight, retain_graph=True)[0].any() for network in student.members)
    # the only gradient of a member's classifier is T (p_i - p_f) / N, from its own loss against the fused one
    learner.eval()
    members, fused = student.all_logits(batch[0])
    kd = learner.compute_losses(batch)["kd"]
    for own, network in zip(members, student.members, strict=True):
        moved = torch.autograd.grad(kd, network[7].bias, retain_graph=True)[0]
        expected = 3.0 * ((own / 3).softmax(dim=1) - (fused / 3).softmax(dim=1)).sum(dim=0) / 16
        assert torch.allclose(moved, expected, rtol=0, atol=1e-12)
    mean = sum(members) / 2
    moved = torch.autograd.grad(kd, student.classifier.bias)[0]
    expected = 3.0 * ((fused / 3).softmax(dim=1) - (mean / 3).softmax(dim=1)).sum(dim=0) / 16
    assert torch.allclose(moved, expected, rtol=0, atol=1e-12)


def test_the_inference_network_is_the_one_that_deploy_names(tmp_path):
    x = torch.rand(5, 3, 28, 28)
    names = ["student.members.0", "student.members.1", "student"]
    for name in names:
        learner = ffl(name).eval()
        logits = learner.evaluated_logits(x)
        assert list(logits) == names
        assert all(torch.equal(logits[n], learner.get_submodule(n)(x)) for n in names)
        assert torch.equal(learner(x), logits[name])
        (measured,) = toys.trainer(tmp_path).validate(learner, toys.data(val_size=50), verbose=False)
        assert measured["val/nll"] == measured[f"val/nll/{name}"]
        assert len({measured[f"val/nll/{n}"] for n in names}) == 3
    with pytest.raises(
        ValueError, match=r"deploy='members.0' is none of the networks in training; the nearest names are student.mem"
    ):
        ffl("members.0")


@pytest.mark.parametrize("deploy", ["student", "student.members.1"])
def test_the_inference_network_is_loaded_from_a_checkpoint_alone(deploy, tmp_path):
    short = ("max_epochs=1", "limit_train_batches=2", "limit_val_batches=1", "accelerator=cpu", "logger=false")
    options = [f"--trainer.{option}" for option in short] + [f"--trainer.default_root_dir={tmp_path}"]
    given = ["fit", "--config=configs/online/ffl.yaml", f"--model.init_args.deploy={deploy}", *options]
    assert main([*given, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]) == 0
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    network = load_student(tmp_path / "last.ckpt")
    own = {
        key.removeprefix(f"{deploy}."): v for key, v in content["state_dict"].items() if key.startswith(f"{deploy}.")
    }
    assert own.keys() == network.state_dict().keys()
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    assert isinstance(network, FeatureFusion) == (deploy == "student")

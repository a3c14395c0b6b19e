from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional

from kd_lightning import Term, load_student
from kd_lightning.__main__ import main
from kd_lightning.core.progress import completed_batches
from kd_lightning.losses import KDLoss, TaskLoss
from kd_lightning.networks import StudentConvNet, TeacherConvNet
from kd_lightning.schemes import MutualLearning
from kd_lightning.weights.export import export_checkpoint
from tests import toys


def conv(seed: int) -> nn.Module:
    """A convolutional network, unlike `toys.network`: its features (4, 8, 8) are at layer 2."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def networks() -> list[nn.Module]:
    return [toys.network(8, seed=1), conv(seed=2), toys.network(16, seed=3)]


def without_dropout(built: list[nn.Module]) -> list[nn.Module]:
    for module in nn.ModuleList(built).modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return built


def batches(count: int = 3) -> toys.Loader:
    generator = torch.Generator().manual_seed(5)
    draw = torch.rand(count, 16, 3, 28, 28, generator=generator)
    return toys.Loader([(x, torch.randint(0, 10, (16,), generator=generator)) for x in draw])


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p = (teacher.detach() / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - (student / temperature).log_softmax(1))).sum() / len(student)


def follows(
    learner: LightningModule,
    built: list[nn.Module],
    losses_of: Callable[[Tensor, Tensor], dict[str, Tensor]],
    weights: dict[str, float],
    folder,
    extra: tuple[nn.Module, ...] = (),
):
    """Compare three steps of the learner with a plain loop over copies of its networks; `losses_of` has the losses."""
    logged: list[dict[str, float]] = []
    learner.log_dict = lambda values, **_: logged.append({k: float(v) for k, v in values.items()})  # type: ignore
    toys.trainer(folder, max_epochs=1).fit(learner, batches())
    everything = nn.ModuleList([*built, *extra])
    optimizer = torch.optim.SGD([p for p in everything.parameters() if p.requires_grad], lr=0.1)
    for step, (x, y) in enumerate(batches()):
        losses = losses_of(x, y)
        seen = {name.removeprefix("train/"): value for name, value in logged[step].items() if "train/" in name}
        assert seen == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-5, abs=1e-6)
        optimizer.zero_grad()
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        optimizer.step()
    for ours, theirs in zip([learner.student, *learner.peers], built, strict=True):  # type: ignore
        for (name, value), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def terms(temperature: float = 1.0) -> dict[str, Term]:
    kd = Term(KDLoss(temperature), weight=0.7)
    return {"task": Term(TaskLoss(), weight=0.5, teacher=None), "kd": kd}


def mutual(**changes) -> MutualLearning:
    student, *peers = networks()
    return MutualLearning(student, peers, terms(), **changes)


def with_validation(**changes):
    return toys.data(**{"val_size": 32} | changes)


CASES = {
    "mutual": lambda: toys.Case(mutual()),
    "mutual_best": lambda: toys.Case(mutual(deploy="best"), data=with_validation),
}


def test_three_steps_are_those_of_a_plain_loop(tmp_path):
    """Networks of different architectures; the loop detaches every target, so that d L_i / d theta_j = 0."""
    built = without_dropout(networks())
    student, *peers = copy.deepcopy(built)

    def losses(x, y):
        z = [network(x) for network in built]
        pairs = [kl(z[i], z[j], 1.0) / 2 for i in range(3) for j in range(3) if i != j]
        return {"task": sum(functional.cross_entropy(each, y) for each in z), "kd": sum(pairs)}

    follows(MutualLearning(student, peers, terms(), optimizer=sgd), built, losses, {"task": 0.5, "kd": 0.7}, tmp_path)


def test_no_network_gets_a_gradient_from_the_loss_of_another():
    """The student's gradient is the same when the peers learn nothing from it, as they are constants."""
    batch = batches().batches[0]
    gradients = []
    for learning in (True, False):
        student, *peers = without_dropout(networks())
        for peer in peers:
            peer.requires_grad_(learning)
        learner = MutualLearning(student, peers, terms())
        learner.weighted_sum(learner.compute_losses(batch)).backward()
        gradients.append({name: p.grad for name, p in student.named_parameters()})
    assert toys.same(*gradients)


def says(digit: int) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, 10))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = functional.one_hot(torch.tensor(digit), 10).float()
    return network


class AtStart(Callback):
    def on_train_start(self, trainer, pl_module):
        self.best = int(pl_module.best)


@pytest.mark.parametrize(
    ("digits", "best"), [([3, 4, 7], "peers.1"), ([3, 7, 7], "peers.0"), ([7, 7, 4], "student"), ([1, 2, 3], "student")]
)
def test_the_inference_network_is_the_best_of_the_last_validation(digits, best, tmp_path):
    student, *peers = map(says, digits)
    learner = MutualLearning(student, peers, terms(), deploy="best", optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    batch = (torch.rand(8, 3, 28, 28), torch.full((8,), 7))
    start = AtStart()
    trainer = toys.trainer(tmp_path, ModelCheckpoint(tmp_path), start, max_epochs=1)
    trainer.fit(learner, toys.Loader([batch]), toys.Loader([batch]))
    assert start.best == 0  # the sanity validation, with the same images, has no effect
    assert learner.inference_network_name == best
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name, digit in zip(["student", "peers.0", "peers.1"], digits, strict=True):
        assert measured[f"val/acc/{name}"] == (digit == 7)
    assert measured["val/acc"] == measured[f"val/acc/{best}"]
    assert measured["val/nll"] == measured[f"val/nll/{best}"]
    assert learner(batch[0]).argmax(1).unique().item() == digits[["student", "peers.0", "peers.1"].index(best)]

    (saved,) = tmp_path.glob("*.ckpt")
    assert torch.load(saved, weights_only=True)["inference_network"] == best
    again = MutualLearning(says(0), [says(0), says(0)], terms(), deploy="best")
    again.load_state_dict(torch.load(saved, weights_only=True)["state_dict"])
    assert again.inference_network_name == best


class Validations(Callback):
    """The number of training batches before each validation, and the best network at that time."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append((completed_batches(trainer), int(pl_module.best)))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize(
    ("often", "expected"),
    [
        ({}, [4, 8, 12]),
        ({"val_check_interval": 2}, [2, 4, 6, 8, 10, 12]),
        ({"check_val_every_n_epoch": 2}, [8]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 5}, [5, 10]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_a_validation_that_was_due_is_run_after_a_resume(often, expected, tmp_path):
    """A checkpoint after a batch is written before the validation that follows, which Lightning skips at a resume."""

    def fit(*callbacks, ckpt_path=None):
        validations = Validations()
        trainer = toys.trainer(tmp_path, validations, *callbacks, **often)
        trainer.fit(mutual(deploy="best"), with_validation(), ckpt_path=ckpt_path)
        return validations.seen

    whole = fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1))
    assert [done for done, _ in whole] == expected
    for step in (4, 6, 12):
        left = [(done, best) for done, best in whole if done >= step]
        assert fit(ckpt_path=tmp_path / f"step={step}.ckpt") == left


def test_the_inference_network_is_the_student_by_default(tmp_path):
    learner = MutualLearning(says(3), [says(7)], terms(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    batch = (torch.rand(8, 3, 28, 28), torch.full((8,), 7))
    trainer = toys.trainer(tmp_path, max_epochs=1)
    trainer.fit(learner, toys.Loader([batch]), toys.Loader([batch]))
    assert learner.inference_network_name == "student"
    assert trainer.callback_metrics["val/acc"] == 0
    assert trainer.callback_metrics["val/acc/peers.0"] == 1
    own = {"deploy": "student", "lr_interval": "epoch"}
    assert dict(learner.hparams) == own | {"lr_scheduler": None, "metrics": None}


@pytest.mark.filterwarnings(r"ignore:\s*(By default only one Jsonargparse|\S+ was deprecated in v4)")
def test_a_peer_as_the_inference_network_is_loaded_and_exported(workplace, provide):
    provide("online/mutual")
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    given = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--model.init_args.deploy=best"]
    assert main(["fit", "--config=configs/online/mutual.yaml", *short, *given]) == 0
    saved = workplace / "runs/online/mutual/last.ckpt"
    content = torch.load(saved, weights_only=True)
    assert content["inference_network"] in ("student", "peers.0", "peers.1")
    learner = MutualLearning.load_from_checkpoint(saved, weights_only=True)
    assert learner.inference_network_name == content["inference_network"]
    for name, kind in {"student": StudentConvNet, "peers.0": StudentConvNet, "peers.1": TeacherConvNet}.items():
        torch.save(content | {"inference_network": name}, saved)
        export_checkpoint(str(saved), "student.safetensors")
        trained = learner.get_submodule(name).state_dict()
        for loaded in (load_student(saved), load_student("student.safetensors")):
            assert type(loaded) is kind
            assert toys.same(loaded.state_dict(), trained)


def test_invalid_groups_raise():
    shared = toys.network(seed=1)
    with pytest.raises(ValueError, match="peers is empty"):
        MutualLearning(toys.network(), [], terms())
    with pytest.raises(ValueError, match="share parameters"):
        MutualLearning(shared, [toys.network(), nn.Sequential(shared)], terms())
    with pytest.raises(ValueError, match="share parameters"):
        MutualLearning(toys.network(), [shared, shared], terms())
    with pytest.raises(ValueError, match="deploy='bets' is neither 'student' nor 'best'"):
        mutual(deploy="bets")

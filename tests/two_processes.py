"""One rank of the runs that `test_distributed` starts; see there. Writes what it computed to a file."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kd_lightning import Classifier, OfflineDistiller, Term
from kd_lightning.callbacks import TeacherCache, TeacherFreezing
from kd_lightning.losses import KDLoss, TaskLoss
from tests import found, toys
from tests.losses.every import CASES, build, listed


class SimilarityLoss(nn.Module):
    """The mean squared difference of the batch's similarity matrices: it compares samples."""

    compares_samples = True

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return ((student @ student.T - teacher @ teacher.T) ** 2).mean()


class Gradients(Callback):
    """Keeps the gradient that the first step's optimizer sees, or each of its optimizers."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        seen = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        moved = {n: p for n, p in pl_module.named_parameters() if id(p) in seen and p.grad is not None}
        self.first |= {n: p.grad.clone() for n, p in moved.items() if n not in self.first}


def plain_network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, width), nn.Tanh(), nn.Linear(width, 10))


def learner() -> OfflineDistiller:
    """No layer that mixes samples: what one process computes is what two must."""
    terms = {
        "task": Term(TaskLoss(), weight=0.5, teacher=None),
        "kd": Term(KDLoss(temperature=3.0), weight=0.5),
        "similarity": Term(SimilarityLoss(), weight=0.1),
    }
    return OfflineDistiller(plain_network(8, seed=1), plain_network(16, seed=2), terms)


def gradients(folder: Path, ranks: int, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The gradient of the first global batch of 32 images, for some kinds of run and a loss of samples."""
    cases = found.cases() | {"compares": lambda: toys.Case(learner(), [TeacherFreezing()])}
    return {name: gradient(folder / name, ranks, cases[name]()) for name in names}


def gradient(folder: Path, ranks: int, case: toys.Case) -> dict[str, Tensor]:
    kept = Gradients()
    found.without_cross_sample_layers(case.learner)
    case.settle(case.learner)
    # what players have of each other is a small difference of large gradients
    exact = {} if case.learner.automatic_optimization else {"precision": "64-true"}
    run = toys.trainer(folder, *case.callbacks, kept, max_steps=1, **exact, **toys.strategy(case.learner, ranks))
    run.fit(case.learner, (case.data or toys.data)(batch_size=32 // ranks, augmentation=None))
    return kept.first


def comparing() -> list[str]:
    """The losses whose value is not the mean over the samples, but for those that draw at random by themselves."""
    return [n for n, case in CASES.items() if getattr(build(n), "compares_samples", False) and not case.random]


def losses(ranks: int) -> dict[str, dict[str, Tensor]]:
    """The gradients of two steps of each loss, and what it stores, by way of a term on this rank's rows."""
    return {name: compared(name, ranks) for name in comparing()}


def compared(name: str, ranks: int) -> dict[str, Tensor]:
    case = CASES[name]
    torch.manual_seed(0)
    networks = [
        nn.ModuleList(nn.Linear(5, math.prod(s[1:])) for s in listed(side)) for side in (case.student, case.teacher)
    ]
    term = Term(
        build(name),
        student=like_address(case.student),
        teacher=like_address(case.teacher),
        target=like_address(case.target()),
    )
    learns = {n: p for part in (networks[0], term) for n, p in part.named_parameters() if p.requires_grad}
    rows = slice(int(os.environ["LOCAL_RANK"]) * 3, int(os.environ["LOCAL_RANK"]) * 3 + 3) if ranks > 1 else slice(0, 6)
    kept = {}
    for step in range(2):
        inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))[rows]
        student, teacher = (
            {
                str(i): layer(inputs).view(-1, *shape[1:])
                for i, (layer, shape) in enumerate(zip(network, listed(side), strict=True))
            }
            for network, side in zip(networks, (case.student, case.teacher), strict=True)
        )
        labels = {str(i): label[rows] for i, label in enumerate(listed(case.target()))}
        loss = term(student, {name: shown.detach() for name, shown in teacher.items()}, labels)
        gradients = torch.autograd.grad(loss, [*learns.values()], allow_unused=True)
        for key, gradient in zip(learns, gradients, strict=True):
            if gradient is not None:
                if ranks > 1:
                    torch.distributed.all_reduce(gradient)
                kept[f"{key} {step}"] = gradient / ranks
    return kept | {f"stored {key}": buffer.clone() for key, buffer in term.named_buffers()}


def like_address(side: Any) -> Any:
    return [str(i) for i in range(len(side))] if isinstance(side, list) else "0"


def metrics(folder: Path, ranks: int) -> dict[str, float]:
    """Accuracy and loss on 77 rows, which two ranks share unevenly."""
    data = toys.data(val_size=77, eval_batch_size=16)
    (measured,) = toys.trainer(folder, **parallel(ranks)).validate(
        Classifier(plain_network(8, seed=1)), data, verbose=False
    )
    return measured


def cached(folder: Path, ranks: int, use_cache: bool) -> dict[str, Tensor]:
    """The weights after an epoch, with the teacher's outputs looked up or not."""
    student = toys.offline()
    callbacks = [TeacherCache()] if use_cache else []
    toys.trainer(folder, *callbacks, max_epochs=1, **parallel(ranks)).fit(student, toys.data(augmentation=None))
    return toys.weights(student)


class Validated(Callback):
    """The running statistics with which a validation was made."""

    def on_validation_end(self, trainer, pl_module):
        self.statistics = {n: buffer.clone() for n, buffer in pl_module.named_buffers() if "running" in n}


def statistics(folder: Path, ranks: int) -> dict[str, Tensor]:
    """BatchNorm's statistics in a validation of two players, whose optimization is manual."""
    kept, case = Validated(), found.cases()["adversarial"]()
    run = toys.trainer(folder, *case.callbacks, kept, max_epochs=1, **toys.strategy(case.learner, ranks))
    run.fit(case.learner, toys.data(val_size=32))
    return kept.statistics


def resumed(folder: Path, ranks: int, names: list[str]) -> dict[str, list[dict[str, Tensor]]]:
    """The weights of a whole run of some kinds, and of runs resumed after its steps 2 (an epoch's end) and 3."""
    cases = found.cases()
    return {name: again(folder / name, ranks, cases[name]) for name in names}


def again(folder: Path, ranks: int, build: Callable[[], toys.Case]) -> list[dict[str, Tensor]]:
    whole = build()
    checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(whole, folder, ranks, checkpoint)
    results = [toys.weights(whole.learner)]
    for step in (2, 3):
        case = build()
        counted = step * whole.learner.optimizer_steps_per_batch
        fit(case, folder / "again", ranks, ckpt_path=folder / f"step={counted}.ckpt")
        results.append(toys.weights(case.learner))
    return results


def fit(case: toys.Case, folder: Path, ranks: int, *callbacks: Callback, ckpt_path: Path | None = None) -> None:
    run = toys.trainer(folder, *case.callbacks, *callbacks, max_epochs=2, **toys.strategy(case.learner, ranks))
    run.fit(case.learner, (case.data or toys.data)(), ckpt_path=ckpt_path)


def parallel(ranks: int) -> dict[str, Any]:
    return {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), sys.argv[2:]
    torch.distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))  # Lightning takes it as it is
    chosen = names or found.one_of_each_folder()
    results: dict[str, Any] = {
        "resumed": resumed(out / "resumed", 2, chosen),
        "gradients": gradients(out / "gradients", 2, chosen if names else [*chosen, "compares"]),
    }
    if not names:
        results |= {
            "losses": losses(2),
            "metrics": metrics(out / "metrics", 2),
            "statistics": statistics(out / "statistics", 2),
            "live": cached(out / "live", 2, use_cache=False),
            "cached": cached(out / "cached", 2, use_cache=True),
        }
    torch.save(results, out / f"rank-{os.environ['LOCAL_RANK']}.pt")

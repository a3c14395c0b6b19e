"""The figures of docs/temperature.md: results of configs/compare/temperature.yaml, entropy and gradient noise.

Run it with `python -m benchmarks.temperature` after `kd-lightning compare --config configs/compare/temperature.yaml`:
it measures the entropy of the teachers' soft targets and the noise of the students' gradients, draws
docs/temperature.png, and rewrites every table of the page between its markers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import seed_everything
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.origin.report import place, table
from kd_lightning import load_teacher
from kd_lightning.compare.plan.artifacts import Results, finished
from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Group, Plan, Run
from kd_lightning.compare.report.plots import COLOURS
from kd_lightning.compare.report.statistics import Spread, paired_difference, spread
from kd_lightning.data import MNISTDataModule
from kd_lightning.losses import kd_loss, task_loss
from kd_lightning.networks import StudentConvNet, TeacherConvNet

Loss = Callable[[Tensor, Tensor], Tensor]
"""A loss of logits (N, C) and N targets: a mean over the N."""

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "configs/compare/temperature.yaml"
PAGE, PICTURE = ROOT / "docs/temperature.md", ROOT / "docs/temperature.png"
TEMPERATURES = (0.5, 1.0, 2.0, 3.0, 4.0, 8.0, 20.0, 100.0)
FOLLOWED = (1.0, 8.0, 100.0)  # temperatures whose noise is measured during training as well
STEPS = (0, 10, 30, 100, 300)
GROUPS = {"images-100": "100 images", "images-1000": "1,000 images", "full": "all 55,000 images"}


# ---- measurements


def entropy(logits: Tensor, temperature: float) -> float:
    """Compute the mean entropy of softmax(logits / T) over the rows, in nats."""
    logs = torch.log_softmax(logits.double() / temperature, dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean().item()


def gradients(network: nn.Module, images: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Compute the gradient of each image's loss, float64 (N, parameters)."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def of_one(parameters: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return loss(functional_call(network, parameters, (image[None],)), target[None])

    each = vmap(grad(of_one), in_dims=(None, 0, 0), chunk_size=250)(parameters, images, targets)
    return torch.cat([gradient.flatten(1) for gradient in each.values()], dim=1).double()


def noise(each: Tensor) -> float:
    """Compute the noise of gradients (N, parameters), tr Cov / ||mean||^2; a batch of B draws has 1 / B of it."""
    mean = each.mean(dim=0)
    return ((each - mean).square().sum(dim=1).mean() / mean.square().sum()).item()


@dataclass
class Measured:
    """Entropy of the teachers' outputs, and noise of the students' gradients: one value for each teacher or seed."""

    entropies: dict[float, list[float]] = field(default_factory=dict)
    at_start: dict[str, list[float]] = field(default_factory=dict)
    centred: dict[str, list[float]] = field(default_factory=dict)
    """Noise at the start under a teacher whose mean logits over the images were made equal."""
    followed: dict[str, list[list[float]]] = field(default_factory=dict)
    """Noise at each of STEPS."""


def measure(plan: Plan, root: Path) -> Measured:
    """Measure the entropy of the teachers' soft targets, and the noise of their students of 1,000 images."""
    runs = next(variant.runs for variant in plan.variants if variant.path == "images-1000/t-1")
    measured = Measured()
    for teacher in dict.fromkeys(run.teacher for run in runs if run.teacher):
        batches = islice(MNISTDataModule(seed=teacher.seed).train_rows(), 10)  # of 1,000
        logits = logits_of(teacher, root, torch.cat([images for images, *_ in batches]))
        for temperature in TEMPERATURES:
            measured.entropies.setdefault(temperature, []).append(entropy(logits, temperature))
    for run in runs[: len(measured.entropies[TEMPERATURES[0]])]:  # a student of each teacher
        measure_noise(run, root, measured)
    return measured


def measure_noise(run: Run, root: Path, measured: Measured) -> None:
    """Measure the noise of one seed's gradients, at the initial weights and during training."""
    assert run.teacher is not None
    data = MNISTDataModule(train_size=1000, val_size=2000, steps_per_epoch=990, seed=run.seed)
    images, labels, rows = (torch.cat(parts) for parts in zip(*data.train_rows(), strict=True))
    logits = logits_of(run.teacher, root, images)
    centred = logits - logits.mean(dim=0)
    kinds: dict[str, tuple[Loss, Tensor]] = {"labels": (task_loss, labels)}
    kinds |= {name_of(temperature): (soft(temperature), logits) for temperature in TEMPERATURES}
    student = first_weights(run.seed)
    for name, (loss, targets) in kinds.items():
        measured.at_start.setdefault(name, []).append(noise(gradients(student, images, targets, loss)))
        if targets is logits:
            measured.centred.setdefault(name, []).append(noise(gradients(student, images, centred, loss)))
    for name in ("labels", *map(name_of, FOLLOWED)):
        loss, targets = kinds[name]
        by_row = targets.new_zeros(data.num_rows, *targets.shape[1:]).index_copy(0, rows, targets)
        students = learning(run.seed, data, loss, by_row)
        course = [noise(gradients(student, images, targets, loss)) for student in students]
        measured.followed.setdefault(name, []).append(course)


def learning(seed: int, data: MNISTDataModule, loss: Loss, by_row: Tensor) -> Iterator[nn.Module]:
    """Yield a student at each of STEPS, with batches and initial weights of the compare file's runs of that seed."""
    student = first_weights(seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.001)
    for step, (images, _, rows) in enumerate(data.train_dataloader()):
        if step in STEPS:
            yield student
        if step == STEPS[-1]:
            return
        optimizer.zero_grad()
        loss(student(images), by_row[rows]).backward()
        optimizer.step()


def first_weights(seed: int) -> nn.Module:
    seed_everything(seed, verbose=False)
    return StudentConvNet()


def soft(temperature: float) -> Loss:
    return lambda student, teacher: kd_loss(student, teacher, temperature)


def name_of(temperature: float) -> str:
    return f"T {temperature:g}"


def logits_of(teacher: Run, root: Path, images: Tensor) -> Tensor:
    network = load_teacher(TeacherConvNet(), teacher.checkpoint(root))
    with torch.no_grad():
        return torch.cat([network(batch) for batch in images.split(250)])


# ---- tables


def accuracy(result: dict[str, Any]) -> float:
    return 100 * result["accuracy"]


def gap(result: dict[str, Any]) -> float:
    return 100 * (result["train_accuracy"] - result["accuracy"])


def likelihood(result: dict[str, Any]) -> float:
    return result["nll"]


def results_table(group: Group, results: Results) -> list[str]:
    """Make a table with a row for each variant: mean ± standard deviation over its finished seeds."""
    rows: list[list[str]] = []
    for variant in group.variants:
        own = [results[run] for run in variant.runs if run in results]
        against = variant.baseline.runs if variant.baseline else []
        pairs = [pair for pair in zip(variant.runs, against, strict=False) if all(run in results for run in pair)]
        difference = paired_difference(*([accuracy(results[pair[side]]) for pair in pairs] for side in (0, 1)))
        missing = "" if len(own) == len(variant.seeds) else f" ({len(own)} of {len(variant.seeds)} seeds)"
        interval = f" [{difference.low:+.2f}, {difference.high:+.2f}]" if len(pairs) > 1 else ""
        rows.append(
            [
                ("labels" if variant.name == "alone" else variant.title) + missing,
                shown(spread([accuracy(result) for result in own]), 2),
                f"{difference.mean:+.2f}{interval}" if pairs else "-",
                shown(spread([100 * result["train_accuracy"] for result in own]), 2),
                shown(spread([gap(result) for result in own]), 2),
                shown(spread([likelihood(result) for result in own]), 3),
                shown(spread([100 * result["calibration_error"] for result in own]), 2),
            ]
        )
    return table(["targets", "accuracy, %", "against labels", "train, %", "train - test", "NLL", "ECE, %"], rows)


def teachers_table(group: Group, results: Results) -> list[str]:
    done = {run.seed: results[run] for variant in group.variants for run in variant.runs if run in results}
    rows = [
        [f"seed {seed}", f"{accuracy(run):.2f}", f"{100 * run['train_accuracy']:.2f}", f"{likelihood(run):.4f}"]
        for seed, run in done.items()
    ]
    return table(["teacher", "accuracy, %", "train, %", "NLL"], rows)


def entropy_table(measured: Measured) -> list[str]:
    of_most = {t: f"{100 * fmean(values) / math.log(10):.0f}" for t, values in measured.entropies.items()}
    rows = [[f"{t:g}", shown(spread(values), 3), of_most[t]] for t, values in measured.entropies.items()]
    return table(["T", "entropy, nats", "of log 10, %"], rows)


def noise_table(measured: Measured) -> list[str]:
    def cell(values: Sequence[float]) -> str:
        return f"{fmean(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})" if values else "-"

    rows = [[name, cell(values), cell(measured.centred.get(name, []))] for name, values in measured.at_start.items()]
    return table(["targets", "unchanged", "without the teacher's mean logits"], rows)


def course_table(measured: Measured) -> list[str]:
    rows = [
        [name, *(f"{fmean(at_step):,.0f}" for at_step in zip(*courses, strict=True))]
        for name, courses in measured.followed.items()
    ]
    return table(["targets", *(f"step {step}" for step in STEPS)], rows)


def shown(values: Spread, digits: int) -> str:
    if math.isnan(values.mean):
        return "-"
    return f"{values.mean:.{digits}f}" + ("" if math.isnan(values.deviation) else f" ± {values.deviation:.{digits}f}")


SECTIONS: dict[str, Callable[[dict[str, Group], Results, Measured], list[str]]] = {
    **{name: lambda groups, results, _, name=name: results_table(groups[name], results) for name in GROUPS},
    "teachers": lambda groups, results, _: teachers_table(groups["teachers"], results),
    "entropy": lambda groups, results, measured: entropy_table(measured),
    "noise": lambda groups, results, measured: noise_table(measured),
    "course": lambda groups, results, measured: course_table(measured),
}


# ---- curves


def draw(plan: Plan, results: Results, measured: Measured, path: Path) -> None:
    """Draw results against T in the upper row, and entropy and gradient noise in the lower row."""
    figure = Figure(figsize=(16.8, 8.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, (said, noisy, course) = figure.subplots(2, 3)
    titles = ("test accuracy, %", "accuracy on the training images less that on the test images, points", "NLL, nats")
    for axes, title, value in zip(above, titles, (accuracy, gap, likelihood), strict=True):
        _style(axes, title)
        for group, colour in zip([group for group in plan.groups if group.name in GROUPS], COLOURS[1:], strict=False):
            values = {v.name: [value(results[run]) for run in v.runs if run in results] for v in group.variants}
            known = [temperature for temperature in TEMPERATURES if values[f"t-{temperature:g}"]]
            spreads = [spread(values[f"t-{temperature:g}"]) for temperature in known]
            deviations = [0.0 if math.isnan(of.deviation) else of.deviation for of in spreads]
            bands = [(of.mean - d, of.mean, of.mean + d) for of, d in zip(spreads, deviations, strict=True)]
            _line(axes, known, bands, colour, GROUPS[group.name])
            if values["alone"]:
                axes.axhline(fmean(values["alone"]), color=colour, linewidth=1.2, linestyle="--")
    above[2].set_yscale("log")
    above[2].set_yticks([0.1, 0.2, 0.5, 1.0], ["0.1", "0.2", "0.5", "1"])
    above[2].minorticks_off()
    above[1].legend(
        loc="upper right",
        bbox_to_anchor=(1, 0.9),
        frameon=False,
        fontsize=8.5,
        title="dashed: labels",
        title_fontsize=8.5,
    )

    _style(said, "entropy of the teachers' soft targets, nats; dotted: log 10")
    _line(said, TEMPERATURES, [_band(values) for values in measured.entropies.values()], COLOURS[0])
    said.axhline(math.log(10), color=COLOURS[0], linewidth=1.2, linestyle=":")

    _style(noisy, "noise of the gradient at the start, tr Cov / ||mean||²")
    low, mean, high = _band(measured.at_start["labels"])
    noisy.axhspan(low, high, color=COLOURS[0], alpha=0.13, linewidth=0)
    noisy.axhline(mean, color=COLOURS[0], linewidth=1.2, linestyle="--", label="labels")
    soft_targets = [_band(measured.at_start[name]) for name in measured.centred]
    _line(noisy, TEMPERATURES, soft_targets, COLOURS[1], "soft targets")
    centred = [_band(values) for values in measured.centred.values()]
    _line(noisy, TEMPERATURES, centred, COLOURS[2], "without the teacher's mean logits")

    _style(course, "noise of the gradient while 1,000 images are learned")
    for (name, courses), colour in zip(measured.followed.items(), COLOURS, strict=False):
        _line(course, STEPS, [_band(values) for values in zip(*courses, strict=True)], colour, name)
    course.set_xscale("symlog", linthresh=10)
    course.set_xticks(STEPS, map(str, STEPS))
    course.set_xlabel("training step")
    for axes in (noisy, course):
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8.5)
    figure.suptitle(
        f"{plan.title}: soft targets alone, mean over seeds ± one standard deviation (below: range)", fontsize=11
    )
    figure.savefig(path)


def _band(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), fmean(values), max(values)


def _line(
    axes: Axes, x: Sequence[float], bands: Sequence[tuple[float, float, float]], colour: str, name: str | None = None
) -> None:
    low, mean, high = ([band[part] for band in bands] for part in range(3))
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(x, mean, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xscale("log")
    axes.set_xticks(TEMPERATURES, [f"{temperature:g}" for temperature in TEMPERATURES])
    axes.minorticks_off()
    axes.set_xlabel("temperature")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def main(args: list[str] | None = None) -> None:
    """Measure, draw, and write the figures of the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temperature", description=main.__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/compare/temperature"), help="the comparison's folder")
    root = parser.parse_args(args).root
    torch.set_num_threads(1)
    plan = read_plan(PLAN)
    results = {run: result for run in plan.runs if (result := finished(run, root)) is not None}
    measured = measure(plan, root)
    draw(plan, results, measured, PICTURE)
    text = PAGE.read_text()
    for name, section in SECTIONS.items():
        text = place(text, name, section({group.name: group for group in plan.groups}, results, measured))
    PAGE.write_text(text)


if __name__ == "__main__":
    main()

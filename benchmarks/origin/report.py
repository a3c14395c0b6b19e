"""The figures of docs/origin.md: each section between markers is rewritten from the finished runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.origin.notebook import BATCH_SIZE, TEST_IMAGES, TRAIN_IMAGES
from benchmarks.origin.runs import replace

Results = dict[str, dict[int, dict[str, Any]]]
"""By variant, then by seed, the content of the run's JSON file."""

NAMES = {
    "teacher": "teacher",
    "student": "student alone",
    "distilled": "student distilled",
    "student_on_logits": "control: student alone, cross-entropy on logits",
    "distilled_log_softmax": "control: student distilled, through log_softmax",
}
NOTEBOOK = {"teacher": 98.3, "student": 79.3, "distilled": 97.3}
TRAIN_BATCHES, TEST_BATCHES = math.ceil(TRAIN_IMAGES / BATCH_SIZE), math.ceil(TEST_IMAGES / BATCH_SIZE)
FLOOR = math.log(math.e + 9) - 1


def write_report(document: Path, runs: Iterable[dict[str, Any]]) -> None:
    """Write the figures of every section between ``<!-- figures: NAME -->`` and ``<!-- end -->``; the prose is kept."""
    results: Results = {name: {} for name in NAMES}
    for run in runs:
        results[run["job"]["variant"]][run["job"]["seed"]] = run
    text = document.read_text()
    for name, section in SECTIONS.items():
        text = place(text, name, section(results))
    replace(document, lambda path: path.write_text(text))


def place(text: str, name: str, figures: list[str]) -> str:
    """Replace the lines between the markers of one section."""
    pattern = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the page wants exactly one <!-- figures: {name} --> and an <!-- end --> after it")
    lines = "\n".join(figures)
    return pattern.sub(lambda markers: f"{markers[1]}\n{lines}\n\n{markers[2]}", text)


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Make a Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def last(runs: dict[int, dict[str, Any]], figure: str) -> list[float]:
    """Return a figure of the last epoch, for every run that reached it."""
    return [run["epochs"][-1][figure] for run in runs.values() if not run["stopped"]]


def spread(values: list[float]) -> str:
    """Format mean and range in per cent."""
    return f"{mean(values):.1%} ({min(values):.1%} to {max(values):.1%})" if values else "-"


def dead(row: dict[str, Any]) -> list[int]:
    """List the classes with recall 0."""
    return [label for label, recall in enumerate(row["recall"]) if recall == 0]


def setting(results: Results) -> list[str]:
    run = next(iter(results["student"].values()))
    seeds = ", ".join(map(str, results["student"]))
    length = f"{run['job']['epochs']} epochs of {TRAIN_BATCHES} batches"
    return [f"Seeds {seeds}; {length}; torch {run['torch']}, CPU, one thread a run."]


def summary(results: Results) -> list[str]:
    def row(name: str) -> list[str]:
        runs = results[name]
        stopped = sum(run["stopped"] for run in runs.values())
        notebook = f"{NOTEBOOK[name]:.1f}%" if name in NOTEBOOK else ""
        return [NAMES[name], notebook, spread(last(runs, "test_accuracy")), f"{len(runs) - stopped} of {len(runs)}"]

    return table(["", "the notebook", "here: mean (range)", "runs that reached the end"], map(row, NAMES))


def seeds(results: Results) -> list[str]:
    def cell(run: dict[str, Any]) -> str:
        return "stopped: NaN" if run["stopped"] else f"{run['epochs'][-1]['test_accuracy']:.1%}"

    rows = [[str(seed), *(cell(results[name][seed]) for name in NAMES)] for seed in results["student"]]
    return table(["seed", *NAMES.values()], rows)


def epochs(results: Results) -> list[str]:
    figures: dict[str, Callable[[float], str]] = {
        "train_loss": "{:.4f}".format,
        "test_loss": "{:.4f}".format,
        "train_accuracy": "{:.1%}".format,
        "test_accuracy": "{:.1%}".format,
        "iterations_per_second": "{:.0f}".format,
    }
    rows: list[list[str]] = []
    for name in NAMES:
        for epoch, of_seeds in by_epoch(results[name]):
            means = [form(mean(row[figure] for row in of_seeds)) for figure, form in figures.items()]
            rows.append([NAMES[name], str(epoch), str(len(of_seeds)), *means])
    return table(["", "epoch", "runs", "train loss", "test loss", "train accuracy", "test accuracy", "it/s"], rows)


def by_epoch(runs: dict[int, dict[str, Any]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """Return each epoch's number with its rows, one for each run that did not stop."""
    rows = zip(*(run["epochs"] for run in runs.values() if not run["stopped"]), strict=True)
    return [(epoch, list(of_seeds)) for epoch, of_seeds in enumerate(rows, start=1)]


def floor(results: Results) -> list[str]:
    """Error rate by the printed test loss if every prediction is certain, (loss - floor) N / batches, and counted."""
    train, test = FLOOR * TRAIN_BATCHES / TRAIN_IMAGES, FLOOR * TEST_BATCHES / TEST_IMAGES
    rows: list[list[str]] = []
    for name in ("teacher", "student"):
        for seed, run in results[name].items():
            row = run["epochs"][-1]
            said = row["test_loss"] * TEST_IMAGES / TEST_BATCHES - FLOOR
            rows.append(
                [
                    f"{NAMES[name]}, seed {seed}",
                    f"{row['test_loss']:.5f}",
                    f"{said:.1%}",
                    f"{1 - row['test_accuracy']:.1%}",
                ]
            )
    head = ["", "test loss as printed", "error rate by that loss", "error rate"]
    return [
        f"The floor, as printed: {train:.5f} on the training set, {test:.5f} on the test set.",
        "",
        *table(head, rows),
    ]


def classes(results: Results) -> list[str]:
    def history(run: dict[str, Any]) -> str:
        return " → ".join(" ".join(map(str, dead(row))) or "none" for row in run["epochs"])

    rows = [
        [f"{NAMES[name]}, seed {seed}", history(run), f"{run['epochs'][-1]['test_accuracy']:.1%}"]
        for name in NAMES
        for seed, run in results[name].items()
        if any(dead(row) for row in run["epochs"])
    ]
    counts = [
        f"- {NAMES[name]}: {sum(bool(dead(run['epochs'][-1])) for run in whole)} of {len(whole)}"
        for name in NAMES
        if (whole := [run for run in results[name].values() if not run["stopped"]])
    ]
    return [
        "Runs that end with a class at recall 0:",
        "",
        *counts,
        "",
        *table(["", "classes at recall 0, epoch by epoch", "test accuracy"], rows),
    ]


def gradients(results: Results) -> list[str]:
    rows = [
        [
            NAMES[name],
            f"{mean(last(results[name], 'mistake_gradient')):.2g}",
            f"{mean(last(results[name], 'mistake_gradient_on_logits')):.2g}",
        ]
        for name in ("teacher", "student", "student_on_logits")
    ]
    return table(["a network's mistakes on the test set", "fed with probabilities", "fed with logits"], rows)


def overflow(results: Results) -> list[str]:
    def row(name: str, seed: int, run: dict[str, Any]) -> list[str]:
        count = run["overflow"]
        gap = results["teacher"][seed]["epochs"][-1]["logit_gap"]
        end = "NaN: stopped" if run["stopped"] else f"{run['epochs'][-1]['test_accuracy']:.1%}"
        return [
            f"{NAMES[name]}, seed {seed}",
            f"{gap:.0f}",
            str(count["steps"]),
            f"{count['log_of_softmax']}" + (f" (first: {count['first']})" if count["first"] else ""),
            str(count["log_softmax"]),
            end,
        ]

    rows = [
        row(name, seed, run) for name in ("distilled", "distilled_log_softmax") for seed, run in results[name].items()
    ]
    head = ["", "teacher's widest logit gap", "steps", "log(softmax) infinite", "log_softmax infinite", "test accuracy"]
    return table(head, rows)


def curve(results: Results) -> list[str]:
    """Compare the training loss of the distilled student with that of the student alone, over seeds that have both."""
    whole = [seed for seed, run in results["distilled"].items() if not run["stopped"]]
    alone, distilled = (
        [mean(row["train_loss"] for row in rows) for _, rows in by_epoch({seed: results[name][seed] for seed in whole})]
        for name in ("student", "distilled")
    )
    pairs = list(enumerate(zip(alone, distilled, strict=True), start=1))
    higher = ", ".join(str(epoch) for epoch, (a, d) in pairs if d > a) or "none"
    rows = [[str(epoch), f"{a:.4f}", f"{d:.4f}", "higher" if d > a else "lower"] for epoch, (a, d) in pairs]
    return [
        *table(["epoch", NAMES["student"], NAMES["distilled"], "distilled is"], rows),
        "",
        f"Epochs in which the distilled loss is the higher: {higher} (means over seeds {', '.join(map(str, whole))}).",
    ]


SECTIONS: dict[str, Callable[[Results], list[str]]] = {
    "setting": setting,
    "summary": summary,
    "seeds": seeds,
    "epochs": epochs,
    "floor": floor,
    "classes": classes,
    "gradients": gradients,
    "overflow": overflow,
    "curve": curve,
}

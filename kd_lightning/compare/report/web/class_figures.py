"""Figures of class labels: differences by class, calibration, softened distributions, agreement with the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.ticker import MaxNLocator

from kd_lightning.compare.plan.variants import Group, Run, Variant
from kd_lightning.compare.report.statistics import Difference, paired_difference
from kd_lightning.compare.report.tested import TEMPERATURES, Tested
from kd_lightning.compare.report.web.run_figures import Styles, longest_line
from kd_lightning.compare.report.web.svg import TEXT, Picture, new_panel, to_svg

TestedRuns = Mapping[Run, Tested]
MOST_CLASSES, MOST_RANKS, LEAST_COUNT = 20, 10, 20
LEAST_PROBABILITY = 1e-6
POWERS = (1, 0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6)


def of_variant(variant: Variant, tested: TestedRuns) -> list[Tested]:
    """The finished runs of a variant, in the order of seeds."""
    return [tested[run] for run in variant.runs if run in tested]


def class_differences(variant: Variant, tested: TestedRuns) -> list[Difference]:
    """Paired differences of accuracy to the baseline in points, class by class; empty without pairs."""
    baseline = variant.baseline.runs if variant.baseline else []
    pairs = [(tested[a], tested[b]) for a, b in zip(variant.runs, baseline, strict=False) if {a, b} <= tested.keys()]
    if not pairs:
        return []
    classes = min(len(each.class_accuracy) for pair in pairs for each in pair)
    return [
        paired_difference(
            *([100 * float(each.class_accuracy[i]) for each in side] for side in zip(*pairs, strict=True))
        )
        for i in range(classes)
    ]


def draw_class_differences(group: Group, tested: TestedRuns, styles: Styles) -> Picture | None:
    """Draw the differences of accuracy to the baseline, class by class, with intervals."""
    found = {
        variant: each
        for variant in group.variants
        if variant.teacher and (each := class_differences(variant, tested))
    }  # fmt: skip
    if not found:
        return None
    means = np.nanmax(np.abs([[each.mean for each in differences] for differences in found.values()]), axis=0)
    order = sorted(np.argsort(-np.nan_to_num(means), kind="stable")[:MOST_CLASSES].tolist())
    figure, axes = new_panel(height=0.8 + 0.34 * len(order))
    axes.axvline(0, color=TEXT, linewidth=0.8)
    told: list[str] = []
    for number, (variant, differences) in enumerate(found.items()):
        style, shift = styles[variant], 0.5 * ((number + 0.5) / len(found) - 0.5)
        chosen = [differences[i] for i in order]
        half = [each.high - each.mean if each.pairs > 1 else 0.0 for each in chosen]
        axes.errorbar(
            [each.mean for each in chosen], np.arange(len(order)) + shift, xerr=half, color=style.colour,
            fmt=style.marker, markersize=4.5, elinewidth=1, capsize=0,
        )  # fmt: skip
        listed = ", ".join(f"class {i}: {each.mean:+.1f}" for i, each in zip(order, chosen, strict=True))
        told.append(f"{variant.title}: {listed}")
    axes.set_yticks(range(len(order)), [str(i) for i in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_ylabel("class")
    axes.set_xlabel("difference of test accuracy, points")
    most = f" The {len(order)} classes with the largest differences." if len(order) < len(means) else ""
    svg = to_svg(figure, f"classes-{group.name}", f"Differences of accuracy by class, in points. {'. '.join(told)}.")
    caption = "Accuracy of each class, paired differences to the baseline with 95 % intervals, which are not corrected"
    return Picture(svg, f"{caption} for the number of classes.{most}")


def draw_reliability(group: Group, tested: TestedRuns, styles: Styles) -> Picture | None:
    """Draw accuracy against confidence, over all seeds of each variant."""
    figure, axes = new_panel()
    axes.plot([0, 1], [0, 1], color=TEXT, linewidth=0.7, linestyle=(0, (2, 3)))
    told: list[str] = []
    for variant in group.variants:
        if not (runs := of_variant(variant, tested)):
            continue
        count, confidence, right = np.sum([run.reliability for run in runs], axis=0)
        enough, style = count >= LEAST_COUNT, styles[variant]
        x, y = confidence[enough] / count[enough], right[enough] / count[enough]
        axes.plot(x, y, style.dash, marker=style.marker, color=style.colour, linewidth=1.3, markersize=4.5)
        surplus = (confidence.sum() - right.sum()) / count.sum()
        told.append(f"{variant.title}: mean confidence minus accuracy {100 * surplus:+.1f} points")
    if not told:
        return None
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("confidence in the predicted class")
    axes.set_ylabel("share of right predictions")
    svg = to_svg(figure, f"reliability-{group.name}", f"Accuracy against confidence. {'; '.join(told)}.")
    return Picture(
        svg,
        f"Reliability: bins with at least {LEAST_COUNT} predictions; below the diagonal a network is overconfident.",
    )


def draw_softened(group: Group, tested: TestedRuns, styles: Styles, teachers: Sequence[Variant]) -> list[Picture]:
    """Draw the mean probabilities of the most likely class, the second, ..., at three temperatures."""
    variants = [each for each in dict.fromkeys([*teachers, *group.variants]) if of_variant(each, tested)]
    drawn: list[Picture] = []
    for number, temperature in enumerate(TEMPERATURES if variants else ()):
        figure, axes = new_panel(height=2.7)
        told: list[str] = []
        for variant in variants:
            values = np.mean([run.softened[number] for run in of_variant(variant, tested)], axis=0)[:MOST_RANKS]
            values, style = np.maximum(values, LEAST_PROBABILITY), styles[variant]
            axes.plot(
                range(1, len(values) + 1), values, style.dash, marker=style.marker, color=style.colour, linewidth=1.3,
                markersize=4.5,
            )  # fmt: skip
            told.append(f"{variant.title} {values[0]:.3f}")
        axes.set_yscale("log")
        axes.set_ylim(LEAST_PROBABILITY / 2, 1.5)
        axes.set_yticks(POWERS, [f"{power:g}" for power in POWERS])
        axes.minorticks_off()
        axes.set_xlabel("class, from the most likely on")
        axes.set_ylabel("mean probability")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        description = f"At temperature {temperature:g} the most likely class has {'; '.join(told)}."
        drawn.append(
            Picture(to_svg(figure, f"soft-{group.name}-{number}", description), f"Temperature {temperature:g}.")
        )
    return drawn


def draw_agreement(group: Group, tested: TestedRuns, styles: Styles) -> Picture | None:
    """Draw how often each variant predicts what the teacher of its seed predicts, right or wrong."""
    taught = next((variant for variant in group.variants if variant.teacher), None)
    if taught is None:
        return None
    teachers = {run.seed: run.teacher for run in taught.runs}
    found: dict[Variant, list[float]] = {}
    for variant in group.variants:
        pairs = [(run, run.teacher or teachers.get(run.seed)) for run in variant.runs]
        shares = [
            100 * float((tested[run].predicted == tested[teacher].predicted).mean())
            for run, teacher in pairs
            if teacher and teacher is not run and run in tested and teacher in tested
            and np.array_equal(tested[run].target, tested[teacher].target)
        ]  # fmt: skip
        if shares and variant is not taught.teacher:
            found[variant] = shares
    if not found:
        return None
    names = [fill(variant.title, 20) for variant in found]
    figure, axes = new_panel(0.9 + 0.36 * len(found), longest_line(names))
    for place, (variant, shares) in enumerate(found.items()):
        style = styles[variant]
        axes.plot([np.mean(shares)] * 2, [place - 0.3, place + 0.3], color=style.colour, linewidth=1.6)
        axes.plot(shares, [place] * len(shares), style.marker, color=style.colour, markersize=5.5, alpha=0.75)
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("agreement, % of test rows")
    told = "; ".join(f"{variant.title} {np.mean(shares):.1f} %" for variant, shares in found.items())
    svg = to_svg(figure, f"agreement-{group.name}", f"Agreement with the teacher: {told}.")
    return Picture(svg, "Agreement with the teacher of the same seed, right or wrong; students alone beside it.")

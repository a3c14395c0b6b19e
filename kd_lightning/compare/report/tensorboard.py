"""A comparison in TensorBoard: a run for each variant, with the mean over its seeds, and the report beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from urllib.parse import urlencode

from kd_lightning.compare.measure.measures import (
    ERRORS,
    SECONDS,
    TRAIN_ACCURACY,
    metric_name,
)
from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group, Plan, Variant
from kd_lightning.compare.report.curves import Point, mean_curves
from kd_lightning.compare.report.settings import differing_settings
from kd_lightning.compare.report.statistics import spread
from kd_lightning.compare.report.summary import Measures

FOLDER = "tensorboard"
"""In the root: TensorBoard's log directory of the variants. The event files of single seeds are beside it."""
REPORT = "report"
"""The run that has the tables, the pictures and the layout of the Custom Scalars page."""
BAND = "~band/"
"""Prefix of the tags of a band's edges: the sign comes after all letters, so that their cards come last."""
NUM_COLOURS = 7
"""TensorBoard's palette; with more variants, a colour means a variant's name in every group."""


def write_tensorboard(
    plan: Plan, results: Results, measures: Mapping[Group, Measures], report: str, root: Path
) -> list[str]:
    """Write the event files of the variants that have finished runs, and of the report; remove those of an earlier one.

    Args:
        plan: The plan of the comparison.
        results: The results of the finished runs.
        measures: The measures of each group.
        report: The report as Markdown.
        root: Directory of the comparison, with the pictures of the report.

    Returns:
        The command that starts TensorBoard, and the link of the page to begin with.
    """
    from kd_lightning.compare.report import event_files  # it loads tensorboard, which the runs do not need

    groups = {variant: group for group in plan.groups for variant in group.variants}
    variants = [variant for variant in plan.variants if any(run in results for run in variant.runs)]
    settings = dict(zip(variants, differing_settings(variants), strict=True))
    curves = {variant: _curves(variant, results, root) for variant in variants}
    tests = {variant: _test_values(variant, results, measures[groups[variant]]) for variant in variants}
    written: list[Path] = []
    for variant in variants:
        values = [(0, value) for value in event_files.hparams_session(variant.path, settings[variant])]
        for tag, points in curves[variant].items():
            for point in points:
                values += [(point.step, event_files.scalar(*each)) for each in _scalars(tag, point)]
        last = max((results[run].get("steps", 0) for run in variant.runs if run in results), default=0)
        values += [(last, event_files.scalar(tag, value)) for tag, value in tests[variant].items()]
        written.append(event_files.write_event_file(root / FOLDER / variant.path, values))
    tags = sorted({tag for own in curves.values() for tag in own})
    columns = dict.fromkeys(tag for own in tests.values() for tag in own)
    values = [event_files.margin_charts(_charts(tags)), event_files.markdown(REPORT, report)]
    pictures = {path.stem: path.read_bytes() for path in sorted(root.glob("*.png"))}
    values += [event_files.png(f"{REPORT}/{name}", content) for name, content in pictures.items()]
    values.append(event_files.hparams_columns(list(settings.values()), columns))
    written.append(event_files.write_event_file(root / FOLDER / REPORT, [(0, value) for value in values]))
    event_files.remove_other_runs(root / FOLDER, written)
    return _how_to_open(plan, tags, root)


def _curves(variant: Variant, results: Results, root: Path) -> dict[str, list[Point]]:
    """Return what is logged during training; test metrics come from the results, which every run has."""
    curves = mean_curves(root / run.name for run in variant.runs if run in results)
    return {tag: points for tag, points in curves.items() if not tag.startswith(("test/", "hp/"))}


def _test_values(variant: Variant, results: Results, measures: Measures) -> dict[str, float]:
    """Average the test metrics over seeds, by tag."""
    values: dict[str, float] = {}
    for measure in measures.shown:
        own = [value for run in variant.runs if run in results and (value := measure.stored(results[run])) is not None]
        if own and measure not in (ERRORS, TRAIN_ACCURACY, SECONDS):
            values[f"test/{metric_name(measure.key)}"] = spread(own).mean
    return values


def _edges(tag: str) -> tuple[str, str]:
    return f"{BAND}{tag}_low", f"{BAND}{tag}_high"


def _scalars(tag: str, point: Point) -> Iterator[tuple[str, float]]:
    yield from zip((tag, *_edges(tag)), (point.mean, point.low, point.high), strict=True)


def _charts(tags: Iterable[str]) -> dict[str, list[tuple[str, str, str]]]:
    """Sort the charts of the Custom Scalars page, one for each tag.

    The weighted sum of the losses is not among them, because its scale follows weights and temperatures.

    Example:
        >>> _charts(["train/kd", "train/loss", "val/acc"])
        {'Validation': [('val/acc', '~band/val/acc_low', '~band/val/acc_high')],
         'Training losses': [('train/kd', '~band/train/kd_low', '~band/train/kd_high')]}
    """
    found: dict[str, list[tuple[str, str, str]]] = {"Validation": [], "Training losses": [], "Other": []}
    titles = {"val": "Validation", "train": "Training losses"}
    for tag in tags:
        if tag != "train/loss":
            found[titles.get(tag.partition("/")[0], "Other")].append((tag, *_edges(tag)))
    return {title: charts for title, charts in found.items() if charts}


def _how_to_open(plan: Plan, tags: Iterable[str], root: Path) -> list[str]:
    """Return the command that starts TensorBoard, and a link to the first group's curves, without smoothing."""
    start = f"tensorboard --logdir {quote(str(root / FOLDER))} --host 127.0.0.1 --port 6006 --load_fast=false"
    first = plan.groups[0]
    kind = next((kind for kind in ("val", "train") if any(tag.startswith(f"{kind}/") for tag in tags)), "test")
    view = {"smoothing": "0", "runFilter": f"^{first.name.replace('.', '[.]')}/", "tagFilter": f"^{kind}/"}
    if len(plan.variants) > NUM_COLOURS:
        view["runColorGroup"] = "regex:([^/]+)$"
    others = "; the other groups: change the filter of the runs there" if len(plan.groups) > 1 else ""
    return [start, f"http://127.0.0.1:6006/?{urlencode(view)}#timeseries  ({first.title}{others})"]

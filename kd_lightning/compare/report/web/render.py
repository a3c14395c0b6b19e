"""The page of a comparison, as one text."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kd_lightning.compare.plan.artifacts import Results
from kd_lightning.compare.plan.variants import Group
from kd_lightning.compare.report.contents import Report
from kd_lightning.compare.report.tested import read_outputs
from kd_lightning.compare.report.web.class_figures import (
    TestedRuns,
    draw_agreement,
    draw_class_differences,
    draw_reliability,
    draw_softened,
)
from kd_lightning.compare.report.web.gallery import Gallery, galleries
from kd_lightning.compare.report.web.grids import (
    Grid,
    Matrix,
    commands,
    confusions,
    differences,
    further_measures,
    settings_grid,
)
from kd_lightning.compare.report.web.run_figures import Styles, draw_costs, draw_curves, draw_seeds
from kd_lightning.compare.report.web.svg import Picture, Style

VERSIONS = ("kd-lightning", "torch", "lightning", "numpy")


@dataclass(frozen=True)
class Block:
    """Figures under one heading."""

    title: str
    pictures: list[Picture]
    has_legend: bool = True


@dataclass(frozen=True)
class GroupView:
    """Everything that the page shows of a group."""

    name: str
    title: str
    notes: str
    sentences: list[str]
    grids: list[Grid]
    legend: list[tuple[str, Style]]
    blocks: list[Block]
    confusions: list[Matrix]
    galleries: list[Gallery]
    settings: Grid | None


def render_page(report: Report, command: str) -> str:
    """Write the page: HTML with its style, its figures and its images, without scripts and without addresses."""
    tested = read_outputs(report.plan, report.results, report.root)
    titles = list(dict.fromkeys(variant.title for variant in report.plan.variants))
    styles = {variant: Style.of_number(titles.index(variant.title)) for variant in report.plan.variants}
    environment = Environment(
        loader=PackageLoader("kd_lightning.compare.report.web", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    networks = Grid("Costs of each network of a finished run", report.networks.header, report.networks.cells)
    return environment.get_template("page.html.j2").render(
        title=report.plan.title,
        notes=report.plan.notes,
        answer=report.answer,
        groups=[_view(group, report, tested, styles) for group in report.plan.groups],
        networks=networks if networks.rows else None,
        network_notes=report.networks.sentences,
        legend_text=report.legend,
        commands=commands(command, report.root, [run for run in report.results if not run.weights]),
        about=_about(report.results),
    )


def _view(group: Group, report: Report, tested: TestedRuns, styles: Styles) -> GroupView:
    rows, measures, results = report.rows[group], report.measures[group], report.results
    teachers = list(dict.fromkeys(variant.teacher for variant in group.variants if variant.teacher))
    further = further_measures(rows)
    runs = [draw_seeds(group, results, measures, styles), draw_agreement(group, tested, styles)]
    classes = [draw_class_differences(group, tested, styles), draw_reliability(group, tested, styles)]
    every = [row for found in report.rows.values() for row in found]
    beside = [*rows, *(row for row in every if row.variant in teachers and row not in rows)]
    blocks = [
        Block("Each seed" + (", and its agreement with the teacher" if runs[1] else ""), _present(runs), False),
        Block("Learning curves", draw_curves(group, results, measures, styles)),
        Block("What a network costs", draw_costs(group, beside, results, report.stats, styles)),
        Block("Classes and calibration", _present(classes)),
        Block("Softened predictions", draw_softened(group, tested, styles, teachers)),
    ]
    shown = dict.fromkeys([*group.variants, *teachers])
    return GroupView(
        name=group.name,
        title=group.title,
        notes=group.notes,
        sentences=report.sections[group].sentences,
        grids=[differences(rows, report.outcomes), *([further] if further.header[1:] else [])],
        legend=list({variant.title: (variant.title, styles[variant]) for variant in shown}.values()),
        blocks=[block for block in blocks if block.pictures],
        confusions=confusions(group, tested),
        galleries=galleries(group, tested, report.root),
        settings=settings_grid(group.variants),
    )


def _present(pictures: list[Picture | None]) -> list[Picture]:
    return [picture for picture in pictures if picture]


def _about(results: Results) -> list[tuple[str, str]]:
    """Say where the numbers come from."""
    finished = sorted(str(result["finished_at"]) for result in results.values() if "finished_at" in result)
    lines: list[tuple[str, Any]] = [
        ("Written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Runs", f"{len(results)} finished" + (f", {finished[0]} to {finished[-1]}" if finished else "")),
        ("Versions", ", ".join(f"{name} {_version(name)}" for name in VERSIONS)),
        ("Python", f"{sys.version.split()[0]} on {platform.system()} {platform.machine()}"),
    ]
    return lines


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"

"""Figures as inline SVG, whose colours follow the page's theme."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from kd_lightning.compare.report.plots import COLOURS

TEXT, GRID, PAPER, BLACK = "#010203", "#040506", "#070809", "#0a0b0c"  # matplotlib leaves out a black that fills
"""Stand for the colours of the page, which `to_svg` puts in their places."""
WIDTH = 4.6
DASHES = ("-", "--", ":", "-.")
MARKERS = "os^DvPX*"
SIGNS = "●■▲◆▼✚✖★"  # the markers as characters, for the legend
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "font.size": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
}


@dataclass(frozen=True)
class Style:
    """How a variant is drawn: its colour is not all that tells it from others."""

    colour: str
    dash: str
    marker: str
    variable: str
    """The page's name of the colour."""
    sign: str

    @classmethod
    def of_number(cls, number: int) -> Style:
        """Return the style of the variant with a number.

        Example:
            >>> Style.of_number(7).marker, Style.of_number(7).dash
            ('*', '--')
        """
        colour, shape = number % len(COLOURS), number % len(MARKERS)
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        return cls(COLOURS[colour] if colour else BLACK, dash, MARKERS[shape], f"--c{colour}", SIGNS[shape])


@dataclass(frozen=True)
class Picture:
    """An inline figure with its caption."""

    svg: str
    caption: str


def new_panel(height: float = 3.1, label: int | None = None) -> tuple[Figure, Axes]:
    """Make a figure of one panel in the page's style; its margins are fixed, because layout engines draw twice.

    Args:
        height: In inches.
        label: The characters of the longest name on the vertical axis, which then has no title; None for numbers.
    """
    left = 0.85 if label is None else 0.25 + 0.085 * label
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, height))
        figure.subplots_adjust(left / WIDTH, 0.55 / height, 1 - 0.15 / WIDTH, 1 - 0.12 / height)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Write a figure as an inline SVG element.

    Args:
        figure: The figure.
        name: Its name on the page, which makes the names within it unique.
        description: What it shows, for those who do not see it.
    """
    stream = io.StringIO()
    FigureCanvasSVG(figure)
    settings: dict[Any, Any] = {**_SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    for colour, place in {TEXT: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)", BLACK: "var(--c0)"}.items():
        svg = svg.replace(colour, place)
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour.lower(), f"var(--c{number})")
    label = escape(description, quote=True)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1
    )

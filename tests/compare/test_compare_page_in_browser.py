"""The page in Chromium: light and dark, narrow, by keyboard and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from made_up_outputs import make_up
from small_plan import new_plan, write
from test_compare_page import page_of

from kd_lightning.compare.plan.plan_file import read_plan

if TYPE_CHECKING:
    from browser import OpenPage

pytestmark = pytest.mark.browser
CUT = """() => [...document.querySelectorAll('figure svg text')].filter(text => {
  const box = text.getBoundingClientRect(), whole = text.closest('svg').getBoundingClientRect();
  return box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1
    || box.bottom > whole.bottom + 1;
}).map(text => text.textContent)"""
CONTRAST = """() => {
  const light = text => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map(value => value / 255);
    const [r, g, b] = parts.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = colour => (Math.max(colour, paper) + 0.05) / (Math.min(colour, paper) + 0.05);
  const all = [...document.querySelectorAll('p, li, td, th, figcaption, caption, figure svg text')];
  return Math.min(...all.map(each => getComputedStyle(each))
    .map(style => ratio(light(style.fill !== 'rgb(0, 0, 0)' ? style.fill : style.color))));
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    content = new_plan()
    content["groups"]["digits"]["seeds"] = [0, 1, 2]
    content["groups"]["digits"]["variants"]["both"]["title"] = "both terms, with a rather long title"
    plan = read_plan(write(folder, content))
    page_of(plan, make_up(plan, folder), folder)
    return (Path(folder) / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_its_window_and_can_be_read(open_page: OpenPage, address: str, width: int, scheme: str) -> None:
    page = open_page(address, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    assert page.evaluate(CONTRAST) > 4.5
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().width))"
    )
    assert smallest > 250


def test_the_scheme_changes_the_colours_of_figures(open_page: OpenPage, address: str) -> None:
    line = "getComputedStyle(document.querySelector('figure svg text')).fill"
    colours = [open_page(address, scheme=scheme).evaluate(line) for scheme in ("light", "dark")]
    assert colours[0] != colours[1]


def test_the_keyboard_reaches_every_link_and_every_wide_table(open_page: OpenPage, address: str) -> None:
    page = open_page(address, width=400)
    expected = page.locator("a, .scroll").count()
    reached = set()
    for _ in range(expected + 2):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("[...document.querySelectorAll('a, .scroll')].indexOf(document.activeElement)"))
    assert set(range(expected)) <= reached


def test_it_asks_for_nothing_and_can_be_printed(open_page: OpenPage, address: str) -> None:
    page = open_page(address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert page.pdf(format="A4").count(b"/Type /Page\n") > 1
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})
    wide = "[...document.querySelectorAll('table')].filter(each => each.getBoundingClientRect().right > 681).length"
    assert page.evaluate(wide) == 0

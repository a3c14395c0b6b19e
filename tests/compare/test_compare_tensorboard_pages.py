"""TensorBoard as it shows a comparison of the shipped plans, opened in Chromium."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from made_up_runs import make_up
from PIL import Image
from rich.console import Console

from kd_lightning.compare.plan.plan_file import read_plan
from kd_lightning.compare.plan.variants import Plan, Run
from kd_lightning.compare.report.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.browser import OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("a TensorBoard")]
CONFIGS = Path(__file__).parents[2] / "configs/compare"
LIMIT_S = 60.0
LINES = "ps => ps.map(p => getComputedStyle(p).stroke).filter(colour => colour != 'none')"
BANDS = "ps => ps.map(p => getComputedStyle(p).fill).filter(colour => colour != 'none')"


class Board(NamedTuple):
    plan: Plan
    results: dict[Run, Any]
    root: Path
    address: str
    link: str
    """As it was printed, at this address."""


def report(plan: Plan, results: dict[Run, Any], root: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    write_report(plan, results, {}, {}, root, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module", params=["mnist", "mnist_full"])
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A TensorBoard on the output of a shipped plan, whose runs (33 and 65) are made up."""
    root = tmp_path_factory.mktemp(request.param)
    plan = read_plan(CONFIGS / f"{request.param}.yaml")
    results = make_up(plan, root)
    printed = report(plan, results, root)
    [command] = re.findall(r"^tensorboard (.*) --port 6006 (.*)$", printed, re.MULTILINE)
    [link] = re.findall(r"^http://127\.0\.0\.1:6006(\S+)", printed, re.MULTILINE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [*" ".join(command).split(), "--port", str(port), "--reload_interval", "1"]
    process = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *arguments], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, len(plan.variants) + 1, process)
        yield Board(plan, results, root, address, address + link)
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(address: str, runs: int, process: subprocess.Popen[bytes]) -> None:
    end = monotonic() + LIMIT_S
    while monotonic() < end and process.poll() is None:
        try:
            if urlopen(f"{address}/data/runs").read().count(b",") == runs - 1:
                return
        except URLError:  # it has not started yet
            pass
        sleep(0.2)
    pytest.fail(f"TensorBoard did not load {runs} runs in {LIMIT_S:.0f} s")


def wait_until(found: Locator, count: int) -> Locator:
    found.nth(count - 1).wait_for(timeout=1000 * LIMIT_S)
    return found


def wait_for_colours(chart: Locator, expected: set[str]) -> None:
    """Wait until a chart, which is drawn on a canvas, has pixels of all colours, such as ``rgb(18, 181, 203)``."""
    end, found = monotonic() + LIMIT_S, set[str]()
    while monotonic() < end and not expected <= found:
        picture = Image.open(io.BytesIO(chart.screenshot())).convert("RGB")
        found = {f"rgb{colour}" for _, colour in picture.getcolors(picture.width * picture.height) or ()}
    assert expected <= found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_custom_scalars_have_a_line_and_a_band_for_every_variant(
    board: Board, open_page: OpenPage, scheme: str, tmp_path: Path
) -> None:
    group = board.plan.groups[-1]
    dark = "?darkMode=true" if scheme == "dark" else ""
    page = open_page(f"{board.address}/{dark}#custom_scalars&regexInput=^{group.name}/", scheme=scheme, height=1400)
    cards = wait_until(page.locator("tf-custom-scalar-margin-chart-card"), 5)
    taught = sum(variant.teacher is not None for variant in group.variants)
    expected = [len(group.variants), len(group.variants), taught, len(group.variants), taught]
    for place, count in enumerate(expected):  # val/acc, val/nll, train/kd, train/task, temperature/kd
        card = cards.nth(place)
        card.scroll_into_view_if_needed()
        card.locator("path.area").nth(count - 1).wait_for(state="attached", timeout=1000 * LIMIT_S)
        colours = card.locator("path.line").evaluate_all(LINES)
        assert len(colours) == count, "a line for each variant"
        assert len(set(colours)) == count, "each in a colour of its own"
        assert sorted(card.locator("path.area").evaluate_all(BANDS)) == sorted(colours), "with a band in that colour"
    assert len(cards.all()) == len(expected)
    page.screenshot(path=tmp_path / f"custom-scalars-{scheme}.png")


def test_all_runs_are_ticked(board: Board, open_page: OpenPage) -> None:
    """TensorBoard ticks none above 40 runs, and the Custom Scalars page is empty then."""
    page = open_page(f"{board.address}/#custom_scalars")
    boxes = wait_until(page.locator("tf-runs-selector paper-checkbox"), len(board.plan.variants) + 1)
    assert boxes.evaluate_all("boxes => boxes.every(box => box.checked)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_printed_link_shows_the_variants_of_a_group(
    board: Board, open_page: OpenPage, scheme: str, tmp_path: Path
) -> None:
    dark = "&darkMode=true" if scheme == "dark" else ""
    page = open_page(board.link.replace("#", f"{dark}#"), scheme=scheme)
    cards = wait_until(page.locator("scalar-card"), 2)
    group, trained = board.plan.groups[0], [each for each in board.plan.groups[0].variants if not each.weights]
    assert len(cards.all()) == 2, "the validation's accuracy and NLL"
    rows = wait_until(cards.first.locator("tb-data-table-content-row"), len(trained))
    named = [row.inner_text().split()[0] for row in rows.all()]
    assert sorted(named) == sorted(variant.path for variant in trained)
    swatches = wait_until(page.locator("runs-data-table .run-color-swatch"), len(group.variants))
    colours = swatches.evaluate_all("bs => bs.map(b => getComputedStyle(b).backgroundColor)")
    assert len(colours) == len(set(colours)) == len(group.variants)
    names = sorted(variant.path for variant in group.variants)
    of_trained = {colours[names.index(variant.path)] for variant in trained}
    wait_for_colours(cards.first.locator("line-chart"), of_trained)
    page.screenshot(path=tmp_path / f"time-series-{scheme}.png")


def test_hparams_have_temperature_weights_and_rate_in_sight(board: Board, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{board.address}/#hparams", width=1800)
    cells = wait_until(page.locator("vaadin-grid-cell-content"), 40)
    page.get_by_text("8.0000").first.wait_for(timeout=1000 * LIMIT_S)
    texts = [cell.inner_text().strip() for cell in cells.all()]
    assert {"kd.temperature", "kd.weight", "task.weight", "optimizer.lr", "test/acc", "test/nll"} <= set(texts)
    assert {"8.0000", "0.50000", "0.0010000", "images-100/soft"} <= set(texts)
    page.screenshot(path=tmp_path / "hparams.png")


def test_the_report_is_there_as_text_and_image(board: Board, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{board.address}/#text")
    page.get_by_text("both terms against alone").first.wait_for(timeout=1000 * LIMIT_S)
    titles = page.locator("tf-text-loader h2").all_inner_texts()
    assert titles == [*(group.title for group in board.plan.groups), "The networks"]
    page.screenshot(path=tmp_path / "text.png")
    page = open_page(f"{board.address}/#images")
    [image] = wait_until(page.locator("tf-image-loader img"), 1).all()
    page.wait_for_function("image => image.naturalWidth > 1000", arg=image.element_handle(), timeout=1000 * LIMIT_S)
    page.screenshot(path=tmp_path / "images.png")


def test_a_new_report_reaches_an_open_tensorboard(board: Board) -> None:
    """The last test: it changes the results."""
    run = board.plan.groups[-1].variants[0].runs[0]
    path = run.variant.path.replace("/", "%2F")
    changed = {each: result | {"metrics": {"accuracy": 0.125}} for each, result in board.results.items()}
    sleep(1.1)  # a name has whole seconds, and TensorBoard reads on in the same file
    report(board.plan, changed, board.root)
    values: list[Any] = []
    end = monotonic() + LIMIT_S
    while monotonic() < end and values[-1:] != [0.125]:
        sleep(0.5)
        points = urlopen(f"{board.address}/data/plugin/scalars/scalars?tag=test%2Facc&run={path}").read()
        values = [float(value) for value in re.findall(rb", ([\d.]+)\]", points)]
    assert values == [0.125], "the old value is gone"

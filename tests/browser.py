"""A browser for tests that open pages: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    OpenPage = Callable[..., Page]
    """Opens an address, with the width and the height of the window and the colour scheme by name."""


def chromium_path() -> str:
    """The path of Chromium; a machine without it fails the test, because a skipped one would show nothing."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium on the PATH: apt-get install chromium", pytrace=False)
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium, started once for all tests."""
    from playwright.sync_api import sync_playwright  # only tests with the marker `browser` need it

    path = chromium_path()
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        # root may start no sandbox; /dev/shm of a container is often too small for a page
        arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if root else [])]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """A function that opens an address in a window of its own; the windows are closed after the test."""
    contexts = []

    def opened(
        url: str, width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light", **settings: object
    ) -> Page:
        size = {"width": width, "height": height}
        context = chromium.new_context(viewport=size, color_scheme=scheme, **settings)  # pyright: ignore
        contexts.append(context)
        page = context.new_page()
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()

"""The browser of the tests, and that its absence is no success."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.browser import chromium_path

if TYPE_CHECKING:
    from tests.browser import OpenPage

PAGE = """data:text/html,<style>@media (prefers-color-scheme: dark) {body {background: rgb(1, 2, 3)}}</style>"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.browser
def test_a_page_has_the_size_and_the_scheme_that_were_asked_for(open_page: OpenPage) -> None:
    page = open_page(PAGE, width=400, scheme="dark")
    assert page.evaluate("innerWidth") == 400
    assert page.evaluate(BACKGROUND) == "rgb(1, 2, 3)"
    assert open_page(PAGE).evaluate(BACKGROUND) != "rgb(1, 2, 3)"


def test_a_machine_without_chromium_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="no chromium on the PATH: apt-get install chromium"):
        chromium_path()

"""Pages in Markdown: links, form, the tree that ARCHITECTURE.md draws, and the tables that are made from the tree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks import compare_keys, methods, renames

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "kd_lightning").rglob("README.md")], key=str
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_page = pytest.mark.parametrize(
    "page",
    PAGES,
    ids=lambda page: str(page.relative_to(ROOT)),
)
SENTENCE_END = re.compile(r"(?<![A-Z])(?<!et al)(?<!e\.g)(?<!i\.e)[.!?][)*\"]*\s+(?=[A-Z`*\[\"])")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines that are neither code, table, quotation, nor comment."""
    code = False
    for number, line in enumerate(text.splitlines(), start=1):
        code ^= line.lstrip().startswith("```")
        if not code and not line.lstrip().startswith(("```", "|", ">", "<!--")):
            yield number, line


def two_sentences(line: str) -> bool:
    """True where a sentence ends within a line; list markers and code do not count."""
    return bool(SENTENCE_END.search(re.sub(r"^\s*\d+\. |`[^`]*`", "", line)))


def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n".join("".join(cell["source"]) + "\n" for cell in cells)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as hosts of Markdown make them."""
    headings = [line.lstrip("#").strip() for _, line in prose(text_of(page)) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The internal links of a page that lead nowhere."""
    code_removed = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", code_removed):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page: Path):
    assert not broken(page)


def test_broken_links_are_found(tmp_path: Path):
    (tmp_path / "other.md").write_text("# The other page\n")
    page = tmp_path / "page.md"
    links = ["other.md", "other.md#the-other-page", "#here", "no.md", "other.md#no", "#no", "https://example.org/no"]
    page.write_text("## Here\n" + "\n".join(f"[x]({link})" for link in links) + "\n`[x](in-code.md)`\n")
    assert broken(page) == ["no.md", "other.md#no", "#no"]


def test_many_links_are_checked():
    assert len(PAGES) > 20
    assert sum(len(re.findall(r"\]\(", text_of(page))) for page in PAGES) > 150


@every_page
def test_lines_have_one_sentence_and_at_most_160_characters(page: Path):
    lines = list(prose(page.read_text(encoding="utf-8")))
    assert not [f"{number}: {len(line)} characters" for number, line in lines if len(line) > 160]
    assert not [f"{number}: {line[:60]}" for number, line in lines if two_sentences(line)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("One sentence. Another one.", True),
        ("**A head.** The rest.", True),
        ("Wang et al. Nothing ends here, e.g. Here, nor with J. Smith.", False),
        ("2. An item with `code. Code` and 0.5. ", False),
    ],
)
def test_two_sentences_on_a_line_are_found(line: str, found: bool):
    assert two_sentences(line) is found


def test_the_tree_that_the_architecture_draws_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", text, re.DOTALL)
    parents: list[Path] = []
    drawn: list[Path] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [ROOT.joinpath(*(path.name for path in parents[:depth]), line.split()[0])]
        drawn.append(parents[-1])
        beside = re.findall(r"\b([\w/]+\.py|\w+/)(?=[\s,;(]|$)", line.split(maxsplit=1)[1]) if depth else []
        folder = parents[-1] if parents[-1].is_dir() else parents[-1].parent
        drawn += [folder / name for name in beside]
    assert len(drawn) > 50
    assert not [str(path.relative_to(ROOT)) for path in drawn if not path.exists()]
    folders = {path.name for path in (ROOT / "kd_lightning").iterdir() if (path / "__init__.py").exists()}
    assert folders <= {path.name for path in drawn if path.parent == ROOT / "kd_lightning"}
    core = {path for path in drawn if path.parent == ROOT / "kd_lightning/core"}
    assert len(core) >= 18
    (order,) = re.findall(r"ground floor first:\n\n(.*?)\n", text)
    assert set(re.findall(r"`(\w+)`", order)) == folders


def test_the_page_of_methods_is_made_from_the_tree():
    written = methods.PAGE.read_text(encoding="utf-8") == methods.page()
    assert written, "docs/methods.md is not what the files of configs/ give: run `make pages`"


def test_the_changelog_has_every_rename():
    written = renames.PAGE.read_text(encoding="utf-8") == renames.page()
    assert written, "CHANGELOG.md lacks a rename of kd_lightning/core/renamed.py: run `make pages`"
    assert "| `MomentumTeacher` | `EMATeacher` |" in renames.page()
    assert "| `Classifier(view=)` | `Classifier(input_key=)` |" in renames.page()


def test_contributing_lists_as_many_files_as_it_says_and_where_they_are():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    additions = re.findall(r"### A ([\w ]+): (three|four) files\n\n(.*?)(?=\n\n|\Z)", text, re.DOTALL)
    assert [kind for kind, *_ in additions] == ["loss", "scheme", "callback", "data source"]
    for _, count, steps in additions:
        paths = re.findall(r"^\d\. `([^`]+)`", steps, re.MULTILINE)
        assert len(paths) == {"three": 3, "four": 4}[count]
        assert not [path for path in paths if not list(ROOT.glob(re.sub(r"<\w+>", "*", path)))]


def test_the_keys_of_compare_files_are_those_of_the_schema():
    written = compare_keys.PAGE.read_text(encoding="utf-8") == compare_keys.page()
    assert written, "run `make pages`"

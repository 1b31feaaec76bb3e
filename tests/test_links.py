"""Links: files and anchors inside the repository exist, addresses outside are well-formed. Nothing is fetched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("notebooks", "solutions", "exercises", "docs", "examples")
PAGES = sorted(
    page
    for page in [
        *ROOT.glob("*.md"),
        *(p for f in FOLDERS for p in (ROOT / f).rglob("*") if p.suffix in (".md", ".ipynb")),
    ]
    if ".ipynb_checkpoints" not in page.parts
)
MARKDOWN = MarkdownIt("commonmark").enable("table")
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/[^/]+/(.+)")


def markdown(page: Path) -> list[str]:
    """A page's text; of a notebook, each markdown cell's."""
    if page.suffix == ".md":
        return [page.read_text()]
    return [cell.source for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == "markdown"]


class Tags(HTMLParser):
    """What HTML inside markdown points at, and the anchors that it sets."""

    def __init__(self) -> None:
        super().__init__()
        self.links, self.anchors = [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.anchors += [found[key] for key in ("id", "name") if found.get(key)]


def tokens(page: Path) -> Iterator:
    """Every token of a page, those inside a line included."""
    for text in markdown(page):
        for token in MARKDOWN.parse(text):
            yield token
            yield from token.children or []


@cache
def links(page: Path) -> list[str]:
    tags, found = Tags(), []
    for token in tokens(page):
        found += [str(token.attrs[key]) for key in ("href", "src") if key in token.attrs]
        if token.type in ("html_block", "html_inline"):
            tags.feed(token.content)
    return found + tags.links


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings; Jupyter's own, which keep capitals, beside them in notebooks."""
    tags, seen, found = Tags(), Counter(), set()
    heading = False
    for token in tokens(page):
        if token.type in ("html_block", "html_inline"):
            tags.feed(token.content)
        if heading and token.type == "inline":
            title = "".join(t.content for t in token.children if t.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
            found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
            seen[slug] += 1
            if page.suffix == ".ipynb":
                found.add(title.strip().replace(" ", "-"))
        heading = token.type == "heading_open"
    return found | set(tags.anchors)


def fault(page: Path, link: str, root: Path = ROOT) -> str | None:
    """What is wrong with a link on a page, or None."""
    parts = urlsplit(link)
    if parts.scheme == "mailto":
        return None if "@" in parts.path else "no address"
    if parts.scheme:
        if parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc):
            return "not a well-formed address"
        badge = COLAB.fullmatch(link)
        if badge and (root / badge[1]).resolve() != page:
            return "opens another notebook in Colab"
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_relative_to(root):
        return "leaves the repository"
    if not target.exists():
        return "no such file"
    if parts.fragment and target.suffix in (".md", ".ipynb") and unquote(parts.fragment) not in anchors(target):
        return "no such anchor"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not {link: why for link in links(page) if (why := fault(page, link))}


def test_there_are_links_to_look_at():
    assert len(PAGES) > 25 and sum(len(links(page)) for page in PAGES) > 60


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("there.md", None),
        ("there.md#a-heading-with-code", None),
        ("there.md#a-heading-with-code-1", None),
        ("#set-by-hand", None),
        ("there.md#a-heading", "no such anchor"),
        ("#no-such", "no such anchor"),
        ("nowhere.md", "no such file"),
        ("../../secret.md", "leaves the repository"),
        ("https://arxiv.org/abs/2603.23550", None),
        ("https://nodots", "not a well-formed address"),
        ("htps://arxiv.org", "not a well-formed address"),
        ("https://colab.research.google.com/github/OWNER/itpo/blob/main/here.md", None),
        ("https://colab.research.google.com/github/OWNER/itpo/blob/main/there.md", "opens another notebook in Colab"),
    ],
)
def test_faults_are_seen(tmp_path, link, why):
    root = tmp_path.resolve()
    (root / "there.md").write_text("# A heading with `code`\n\n## A heading, with code\n")
    here = root / "here.md"
    here.write_text('<a id="set-by-hand"></a>\n\ntext\n')
    assert fault(here, link, root) == why


def test_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('[a](one.md) ![b](two.png) <img src="three.png"> [c][ref]\n\n`[d](four.md)`\n\n[ref]: five.md\n')
    assert sorted(links(page)) == ["five.md", "one.md", "three.png", "two.png"]

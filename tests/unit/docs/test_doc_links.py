"""Documentation that leads somewhere: relative links, anchors, paths in code type, indexes."""

from __future__ import annotations

import ast
import os
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$")
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|proto|toml|c|h|yaml|json))(?:::\w+)?`")
NAMED = re.compile(r"(?<![\w/.-])((?:\.\./)?docs/[\w./-]+\.(?:md|png|json))(?:#([\w-]+))?")
"""Pages that code, alerts and messages name."""
SHORT = (
    "",
    "tests",
    "tests/unit",
    "docs",
    "stage_worker",
    "stage_worker/models",
    "stage_worker/models/native",
)
"""Folders from which pages name paths."""


@cache
def sources() -> tuple[str, ...]:
    """Files of the repository; what is built lies in folders whose names begin with a dot, or in build/."""
    names = []
    for folder, inner, files in os.walk(ROOT):
        inner[:] = [name for name in inner if not name.startswith((".", "__")) and name != "build"]
        names += [str((Path(folder) / name).relative_to(ROOT)) for name in files]
    return tuple(sorted(names))


PAGES = [name for name in sources() if name.endswith(".md")]
SOURCES = [
    name for name in sources() if name.endswith((".py", ".yaml", ".json", ".toml", ".proto", ".sh", ".yml"))
]


def prose(text: str) -> list[str]:
    """Its lines, without those of code blocks."""
    lines, code = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            lines.append(line)
    return lines


@cache
def anchors(page: Path) -> frozenset[str]:
    """The names of headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for line in prose(page.read_text()):
        if match := HEADING.match(line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "")
            name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            names.add(name if name not in found else f"{name}-{found[name]}")
            found[name] = found.get(name, 0) + 1
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for target in LINK.findall("\n".join(prose((ROOT / page).read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_pages_exist(page: str) -> None:
    text = "\n".join(prose((ROOT / page).read_text()))
    folders = [ROOT / short for short in SHORT] + [(ROOT / page).parent]
    wrong = {path for path in PATH.findall(text) if not any((folder / path).exists() for folder in folders)}
    assert not {path for path in wrong if not re.search(r"[A-Z]{3}", path)}  # DIR/x.json stands for yours


@pytest.mark.parametrize(
    "source", [s for s in SOURCES if NAMED.search((ROOT / s).read_text(errors="replace"))]
)
def test_pages_that_code_names_exist(source: str) -> None:
    for path, anchor in NAMED.findall((ROOT / source).read_text()):
        there = ROOT / path.removeprefix("../")
        assert there.exists(), path
        assert not anchor or anchor in anchors(there), f"{path}#{anchor}"


def test_each_decision_is_listed_once() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = [link for link in LINK.findall((folder / "README.md").read_text()) if not link.startswith("..")]
    assert sorted(listed) == sorted(page.name for page in folder.glob("[0-9]*.md"))


def test_each_page_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        for target in LINK.findall((ROOT / page).read_text()):
            path = target.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                linked.add(((ROOT / page).parent / path).resolve())
    assert not [page for page in PAGES if page.startswith("docs/") and (ROOT / page).resolve() not in linked]


@pytest.mark.parametrize("package", [name for name in sources() if name.endswith("/__init__.py")])
def test_packages_say_what_they_are(package: str) -> None:
    if not package.startswith(("tests/", "tidepipe/v1/")):
        assert ast.get_docstring(ast.parse((ROOT / package).read_text()))

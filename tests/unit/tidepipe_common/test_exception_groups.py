"""Groups of errors, on every Python that TidePipe runs on."""

from __future__ import annotations

import ast
from pathlib import Path

from tidepipe_common.exception_groups import leaves

ROOT = Path(__file__).parents[3]
PACKAGES = (
    "common",
    "controller",
    "predictor",
    "router",
    "simulation",
    "stage_worker",
    "tidepipe",
    "deploy",
    "bench",
)


def test_leaves_of_nested_groups_in_order() -> None:
    one, two, three = ValueError("1"), ValueError("2"), ValueError("3")
    assert leaves(ExceptionGroup("", [one, ExceptionGroup("", [two]), three])) == [one, two, three]


def test_nothing_is_raised_inside_except_star() -> None:
    """CPython 3.11.0 to 3.11.3 wrap it into a group that no caller catches."""
    raises = [
        f"{path.relative_to(ROOT)}:{inner.lineno}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
        for statement in handler.body
        for inner in ast.walk(statement)
        if isinstance(inner, ast.Raise)
    ]
    assert raises == []

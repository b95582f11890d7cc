"""Help that can be read on a terminal of 80 columns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from rich.cells import cell_len
from typer.testing import CliRunner

from tidepipe.cli.main import app, fit_help


def test_no_command_brings_what_help_does_without() -> None:
    """It would take half of its time; and gRPC's log is told to be quiet by `main`, before it is there."""
    heavy = "grpc", "google.protobuf", "numpy", "torch", "lightgbm", "httpx"
    code = f"import sys, tidepipe.cli.main; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_all_within_80_columns(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0
    assert all(cell_len(line) <= 80 for line in shown.output.splitlines())
    assert "…" not in shown.output, "a word is cut"
    assert not [one.name for one in COMMANDS[path].params if not one.help and not one.hidden]


@pytest.mark.parametrize("path", [("up",), ("generate",), ("admin",)], ids=" ".join)
def test_no_name_is_cut_on_a_narrow_terminal(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "rich_markup_mode", app.rich_markup_mode)
    monkeypatch.setattr(app.info, "context_settings", app.info.context_settings)
    fit_help(40)
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    names = [name for one in COMMANDS[path].params for name in one.opts if name.startswith("-")]
    assert not [name for name in names if name not in shown.output]
    assert all(cell_len(line) <= 60 for line in shown.output.splitlines())

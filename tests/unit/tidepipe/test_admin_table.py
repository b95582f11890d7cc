"""Tables of `tidepipe admin` on narrow terminals."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tidepipe.cli.admin.table import Column, print_table

COLUMNS = (Column("instance"), Column("seqs", 1, right=True), Column("policy", 3), Column("report", 2))
ROWS = [("instance-of-node-a-17", "8192", "padg-published", "100 ms"), ("b", "1", "auto", "-")]


@pytest.mark.parametrize("width", [8, 20, 30, 40, 80])
def test_no_name_is_cut_and_what_is_left_out_is_named(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    print_table(console, COLUMNS, ROWS)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    joined = "".join(text.split())
    assert "instance-of-node-a-17" in joined
    assert "…" not in text
    for column in COLUMNS:
        assert column.name in joined
    assert all(len(line) <= width for line in text.splitlines())
    assert ("notshown" in joined) == (width < 60)


def test_commands_print_their_tables_so() -> None:
    """Others cut names. Grids without columns' names have nothing to leave out."""
    folder = Path(__file__).parents[3] / "tidepipe" / "cli"
    texts = {path.name: path.read_text() for path in folder.rglob("*.py")}
    assert {name for name, text in texts.items() if "Table(" in text} == {"table.py", "phases_view.py"}

"""Tables that fit the terminal: what does not fit is left out as a column, and named; nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tidepipe_common.text.text import on_one_line

PADDING = 3
"""Beside a cell: a space on each side and the line between columns."""


def named(text: str) -> str:
    """A name or message from elsewhere, as markup that shows it and does nothing else."""
    return escape(on_one_line(text))


@dataclass(frozen=True, slots=True)
class Column:
    """rank: the higher, the sooner it is left out; 0: never. right: numbers."""

    name: str
    rank: int = 0
    right: bool = False


def print_table(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print rows under columns, as many of them as the console is wide.

    Cells: markup, or Text where strangers have a say.
    """
    cells = [[Text.from_markup(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    shown = list(range(len(columns)))

    def width(index: int) -> int:
        return max([cell_len(columns[index].name), *(row[index].cell_len for row in cells)])

    while sum(width(index) + PADDING for index in shown) > console.width:
        least = max(shown, key=lambda index: columns[index].rank)
        if columns[least].rank == 0:
            break
        shown.remove(least)
    table = Table(box=SIMPLE, padding=(0, 1), show_edge=False)
    for index in shown:
        column = columns[index]
        # A name that is wider than the whole terminal goes on in the next line.
        least = min(width(index), console.width - PADDING)
        table.add_column(
            column.name, justify="right" if column.right else "left", overflow="fold", min_width=least
        )
    for row in cells:
        table.add_row(*(row[index] for index in shown))
    console.print(table)
    if missing := [column.name for index, column in enumerate(columns) if index not in shown]:
        console.print(f"not shown for want of width: {', '.join(missing)} (--json has them)", style="dim")

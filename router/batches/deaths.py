"""What was under way whenever a router died, counted on the disk: no line kills each router that takes it up.

A kill -9 from outside must fail no line, so bad luck is told from guilt as with stages (decision 026): lines
that were under way at two deaths are begun one by one; one that was alone then at another one is given up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from router.batches.lines import Line
from router.batches.records import IN_PROGRESS, VALIDATING

TABLE = """
CREATE TABLE under_way (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,    -- of the line; 0 for the taking in of the batch's input file
    running INTEGER NOT NULL, deaths INTEGER NOT NULL DEFAULT 0,
    alone INTEGER NOT NULL DEFAULT 0,    -- at the last death
    PRIMARY KEY (batch_id, number)
) WITHOUT ROWID;
"""
SUSPECT_DEATHS = 2
"""Deaths after which a line is tried apart; alone at the last of them, it is given up."""
MOST_DEATHS = 4
"""Deaths after which it is given up in any case."""
INTAKE = 0

_OVER = """
number > 0 AND NOT EXISTS (
    SELECT 1 FROM lines WHERE lines.batch_id = under_way.batch_id AND lines.number = under_way.number
    AND answer IS NULL
)
"""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A line of a batch in progress that was under way at several deaths. custom_id: as `lines` keeps it."""

    batch_id: str
    line: Line
    custom_id: bytes
    deaths: int
    given_up: bool


def begin(db: sqlite3.Connection, batch_id: str, numbers: Iterable[int]) -> None:
    """These are under way from now on."""
    db.execute(f"DELETE FROM under_way WHERE batch_id = ? AND {_OVER}", (batch_id,))
    db.executemany(
        "INSERT INTO under_way (batch_id, number, running) VALUES (?, ?, 1) "
        "ON CONFLICT DO UPDATE SET running = 1",
        [(batch_id, number) for number in numbers],
    )


def survived(db: sqlite3.Connection, batch_id: str, number: int) -> None:
    """It has not killed the router, or not at once."""
    db.execute("UPDATE under_way SET running = 0 WHERE batch_id = ? AND number = ?", (batch_id, number))


def ended_in_order(db: sqlite3.Connection) -> None:
    """The router stops: that is nobody's fault."""
    db.execute("UPDATE under_way SET running = 0")


def count(db: sqlite3.Connection) -> None:
    """At a router's start: whatever is under way was so when the one before died."""
    db.execute(f"DELETE FROM under_way WHERE {_OVER}")
    (running,) = db.execute("SELECT COUNT(*) FROM under_way WHERE running").fetchone()
    db.execute(
        "UPDATE under_way SET deaths = deaths + 1, alone = ?, running = 0 WHERE running", (running == 1,)
    )


def suspects(db: sqlite3.Connection) -> list[Suspect]:
    """Lines to be tried apart or given up, in their order."""
    rows = db.execute(
        "SELECT batch_id, lines.number, request, custom_id, deaths, alone FROM under_way "
        "JOIN lines USING (batch_id, number) JOIN batches ON batches.id = batch_id "
        "WHERE deaths >= ? AND answer IS NULL AND batches.status = ? ORDER BY batches.number, lines.number",
        (SUSPECT_DEATHS, IN_PROGRESS),
    )
    return [
        Suspect(batch_id, Line(number, request), custom_id, deaths, bool(alone) or deaths >= MOST_DEATHS)
        for batch_id, number, request, custom_id, deaths, alone in rows
    ]


def deadly_intakes(db: sqlite3.Connection) -> dict[str, int]:
    """Batches whose input file was being taken in at several deaths, and at how many."""
    rows = db.execute(
        "SELECT batch_id, deaths FROM under_way JOIN batches ON batches.id = batch_id "
        "WHERE under_way.number = ? AND batches.status = ? AND (deaths >= ? OR deaths >= ? AND alone)",
        (INTAKE, VALIDATING, MOST_DEATHS, SUSPECT_DEATHS),
    )
    return dict(rows.fetchall())

"""The record of what was under way whenever a router died: no line kills each router that takes it up.

A line is read (checked, tokenized), which takes moments and is the router's own work, and then answered,
which takes long and is the instances'. Decision 038 says what its deaths in either mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from router.batches.lines import Line
from router.batches.records import IN_PROGRESS, VALIDATING

FIRST_TABLE = """
CREATE TABLE under_way (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,    -- of the line; 0 for the taking in of the batch's input file
    running INTEGER NOT NULL, deaths INTEGER NOT NULL DEFAULT 0,
    alone INTEGER NOT NULL DEFAULT 0,    -- at the last death
    PRIMARY KEY (batch_id, number)
) WITHOUT ROWID;
"""
TABLE = """
DROP TABLE under_way;
CREATE TABLE under_way (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,    -- of the line; 0 for the taking in of the batch's input file
    stage INTEGER NOT NULL,
    place INTEGER NOT NULL DEFAULT 0,    -- in an input file: lines taken in
    died_at INTEGER NOT NULL DEFAULT 0,    -- the place at the last death
    deaths INTEGER NOT NULL DEFAULT 0,
    alone INTEGER NOT NULL DEFAULT 0,    -- of these: those at which nothing else was under way
    reading INTEGER NOT NULL DEFAULT 0,    -- of these: those while it was read, at one place
    sole INTEGER NOT NULL DEFAULT 0,    -- at the last one nothing else was read
    PRIMARY KEY (batch_id, number)
) WITHOUT ROWID;
"""
AT_REST, READING, ANSWERING = 0, 1, 2
"""Stages."""
READ_DEATHS = 2
"""A line that is read is given up at the second death, an input file if both were at one place in it."""
ALONE_DEATHS = 2
"""At so many deaths at which it was alone a line is given up; one more if it ever died in company."""
SUSPECT_DEATHS = 3
"""Deaths while it was answered after which a line is begun with nothing beside it."""
INTAKE = 0

_OVER = """
number > 0 AND NOT EXISTS (
    SELECT 1 FROM lines WHERE lines.batch_id = under_way.batch_id AND lines.number = under_way.number
    AND answer IS NULL
)
"""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A line of a batch in progress that was under way when routers died. custom_id: as `lines` keeps it.

    in_answering: also beyond the time while it was read.
    """

    batch_id: str
    line: Line
    custom_id: bytes
    deaths: int
    in_answering: bool
    given_up: bool


def begin(db: sqlite3.Connection, batch_id: str, numbers: Iterable[int], place: int = 0) -> None:
    """These are read from now on. place: how far an input file is."""
    db.executemany(
        "INSERT INTO under_way (batch_id, number, stage, place) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET stage = excluded.stage, place = excluded.place",
        [(batch_id, number, READING, place) for number in numbers],
    )


def enter(db: sqlite3.Connection, batch_id: str, number: int, stage: int) -> None:
    """The next stage. Who has been read is not to blame for deaths while it was."""
    forgiven = ", deaths = deaths - reading, alone = MIN(alone, deaths - reading), reading = 0"
    db.execute(
        f"UPDATE under_way SET stage = ?{forgiven if stage == ANSWERING else ''} "
        "WHERE batch_id = ? AND number = ?",
        (stage, batch_id, number),
    )


def over(db: sqlite3.Connection, batch_id: str, number: int) -> None:
    """It is answered."""
    db.execute("DELETE FROM under_way WHERE batch_id = ? AND number = ?", (batch_id, number))


def ended_in_order(db: sqlite3.Connection) -> None:
    """The router stops: that is nobody's fault."""
    db.execute("UPDATE under_way SET stage = ?", (AT_REST,))


def count(db: sqlite3.Connection) -> None:
    """At a router's start: whatever is under way was so when the one before died."""
    db.execute(f"DELETE FROM under_way WHERE {_OVER}")
    under_way, read = db.execute(
        "SELECT COUNT(*), COALESCE(SUM(stage = ?), 0) FROM under_way WHERE stage", (READING,)
    ).fetchone()
    db.execute(
        "UPDATE under_way SET deaths = deaths + 1, alone = alone + ?, sole = stage = ? AND ?, "
        "reading = CASE WHEN stage <> ? THEN reading WHEN died_at = place THEN reading + 1 ELSE 1 END, "
        "died_at = place, stage = ? WHERE stage",
        (under_way == 1, READING, read == 1, READING, AT_REST),
    )


def suspects(db: sqlite3.Connection) -> list[Suspect]:
    """Lines to be tried apart or given up. Those that were alone least often go first: so another blow from
    outside meets somebody else."""
    rows = db.execute(
        "SELECT batch_id, lines.number, request, custom_id, deaths, alone, reading, sole FROM under_way "
        "JOIN lines USING (batch_id, number) JOIN batches ON batches.id = batch_id "
        "WHERE (reading OR deaths >= ? OR alone >= ?) AND answer IS NULL AND batches.status = ? "
        "ORDER BY alone, batches.number, lines.number",
        (SUSPECT_DEATHS, ALONE_DEATHS, IN_PROGRESS),
    )
    return [
        Suspect(
            batch_id,
            Line(number, request),
            custom_id,
            deaths,
            max(deaths - reading, alone) >= ALONE_DEATHS,
            alone >= ALONE_DEATHS + (deaths > alone) or (reading >= READ_DEATHS and bool(sole)),
        )
        for batch_id, number, request, custom_id, deaths, alone, reading, sole in rows
    ]


def deadly_intakes(db: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    """Batches at one place of whose input file several routers died: how many, and the lines before it."""
    rows = db.execute(
        "SELECT batch_id, reading, place FROM under_way JOIN batches ON batches.id = batch_id "
        "WHERE under_way.number = ? AND batches.status = ? AND reading >= ?",
        (INTAKE, VALIDATING, READ_DEATHS),
    )
    return {batch_id: (reading, place) for batch_id, reading, place in rows}

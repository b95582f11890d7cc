"""Formats of SQLite files, and the steps between them."""

from __future__ import annotations

import sqlite3

import pytest

from tidepipe_common.sqlite_schema import migrate

FIRST = "CREATE TABLE a (x INTEGER); -- a remark; with a semicolon\nINSERT INTO a VALUES (1);"


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_an_old_file_is_brought_forward_and_keeps_what_it_has() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    assert migrate(connection, [FIRST]) == 0
    second = "ALTER TABLE a ADD COLUMN y TEXT NOT NULL DEFAULT 'old'"
    assert migrate(connection, [FIRST, second]) == 1
    assert migrate(connection, [FIRST, second]) == 2
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(1, "old")]
    assert version(connection) == 2


def test_a_step_that_fails_leaves_the_file_as_it_was() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, [FIRST])
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [FIRST, "DELETE FROM a", "ALTER TABLE nothing ADD COLUMN y TEXT"])
    assert connection.execute("SELECT x FROM a").fetchall() == [(1,)]
    assert version(connection) == 1


def test_a_file_of_a_later_version_is_left_alone() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA user_version = 7")
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        migrate(connection, [FIRST])
    assert version(connection) == 7

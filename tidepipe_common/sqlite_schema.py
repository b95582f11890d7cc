"""The format of a SQLite file: which version of it a file has, and the steps from one to the next."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

Migration = str | Callable[[sqlite3.Connection], None]
"""Brings a file from one version to the next: SQL, or a function that runs within the transaction."""


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> int:
    """Bring a file to the newest version; returns the version that it had.

    migrations[i] leads from version i (kept as `user_version`; 0 is an empty file) to i + 1. Never change
    one that was released: add another. All of them happen in one transaction, or none does. The connection
    must be in autocommit (isolation_level None). sqlite3.DatabaseError if the file is of a later version than
    is known here.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > len(migrations):
        raise sqlite3.DatabaseError(
            f"it was written by a later version of TidePipe (format {found}, here {len(migrations)}); use "
            "that version, or the copy that was made before the upgrade"
        )
    if found == len(migrations):
        return int(found)
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have done it meanwhile.
        (now,) = connection.execute("PRAGMA user_version").fetchone()
        for migration in migrations[now:]:
            if callable(migration):
                migration(connection)
            else:
                for statement in _statements(migration):
                    connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {max(now, len(migrations))}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return int(found)


def _statements(script: str) -> list[str]:
    """The statements of a script one by one: `executescript` would commit before it begins."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current.strip())
            current = ""
    if current.strip():
        statements.append(current.strip())
    return statements

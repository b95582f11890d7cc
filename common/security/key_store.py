"""The file with the API keys: SQLite, so that `tidepipe keys` may write while routers read."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common.errors import ConfigError, NotFoundError, UnauthenticatedError
from common.security.api_key import KEY_ROLES, NOBODY, ApiKey, SecretDigest, new_key, split_key

REFRESH_S = 0.5
"""A running router knows new and revoked keys after so long."""
_BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS api_key (
    key_id TEXT PRIMARY KEY, name TEXT NOT NULL, roles TEXT NOT NULL, created REAL NOT NULL, expires REAL,
    revoked INTEGER NOT NULL DEFAULT 0, requests_per_minute REAL, max_concurrent INTEGER,
    salt BLOB NOT NULL, digest BLOB NOT NULL)
"""
_COLUMNS = "key_id, name, roles, created, expires, revoked, requests_per_minute, max_concurrent, salt, digest"

_INVALID = "the API key is not valid: unknown, wrong, expired or revoked"


class KeyStore:
    """Keys in one file, which is made when the first key is added, readable by its owner alone.

    ConfigError from any method if the file cannot be read or written, or is no key store.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds, against which expiry is checked."""
        self._path = path
        self._clock = clock
        self._known: dict[str, tuple[ApiKey, SecretDigest]] = {}
        self._seen: tuple[int, int] | None = None
        self._look_again = 0.0

    def add(
        self,
        name: str,
        roles: Iterable[str],
        *,
        lifetime_s: float | None = None,
        requests_per_minute: float | None = None,
        max_concurrent: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key: its record, and the key itself, which nobody can find out later."""
        wanted = frozenset(roles)
        _check(name, wanted, lifetime_s, requests_per_minute, max_concurrent)
        key_id, key, stored = new_key()
        now = self._clock()
        expires = None if lifetime_s is None else now + lifetime_s
        record = ApiKey(key_id, name, wanted, now, expires, False, requests_per_minute, max_concurrent)
        with self._open(create=True) as database:
            database.execute(
                f"INSERT INTO api_key ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?)",
                (
                    *(key_id, name, ",".join(sorted(wanted)), now, expires),
                    *(requests_per_minute, max_concurrent, stored.salt, stored.digest),
                ),
            )
        return record, key

    def list(self) -> list[ApiKey]:
        """All keys, oldest first, expired and revoked ones included."""
        return sorted((key for key, _ in self._read().values()), key=lambda key: key.created)

    def revoke(self, key_id: str) -> None:
        """The key opens nothing any more, within REFRESH_S also at running routers. NotFoundError."""
        with self._open() as database:
            found = database.execute("UPDATE api_key SET revoked = 1 WHERE key_id = ?", (key_id,)).rowcount
        if not found:
            raise NotFoundError(f"there is no key {key_id} in {self._path}; `tidepipe keys list` shows all")

    def authenticate(self, presented: str) -> ApiKey:
        """Whose key this is; UnauthenticatedError if it is not valid, never saying why."""
        parts = split_key(presented)
        key_id, secret = parts or ("", presented)
        key, stored = self._current().get(key_id, (None, NOBODY))
        matches = stored.matches(secret)
        expired = key is not None and key.expires is not None and self._clock() >= key.expires
        if key is None or not matches or key.revoked or expired:
            raise UnauthenticatedError(_INVALID)
        return key

    def _current(self) -> dict[str, tuple[ApiKey, SecretDigest]]:
        """Read the file again only if it changed, and do not even ask the file system at every request."""
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + REFRESH_S
            try:
                about = self._path.stat()
                seen = (about.st_mtime_ns, about.st_size)
            except OSError as error:
                raise ConfigError(f"cannot read the API keys in {self._path}: {error.strerror}") from error
            if seen != self._seen:
                self._known, self._seen = self._read(), seen
        return self._known

    def _read(self) -> dict[str, tuple[ApiKey, SecretDigest]]:
        with self._open() as database:
            rows = database.execute(f"SELECT {_COLUMNS} FROM api_key").fetchall()
        return {
            row[0]: (
                ApiKey(
                    row[0], row[1], frozenset(row[2].split(",")), row[3], row[4], bool(row[5]), row[6], row[7]
                ),
                SecretDigest(row[8], row[9]),
            )
            for row in rows
        }

    @contextlib.contextmanager
    def _open(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if create:
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            elif not self._path.is_file():
                raise ConfigError(f"there are no API keys in {self._path}; make one with `tidepipe keys add`")
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_S)) as database, database:
                database.execute(_SCHEMA)
                yield database
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot use the API keys in {self._path}: {error}") from error


def _check(
    name: str,
    roles: frozenset[str],
    lifetime_s: float | None,
    requests_per_minute: float | None,
    max_concurrent: int | None,
) -> None:
    if not name or not name.isprintable():
        raise ConfigError("a key needs a name that says whose it is")
    if not roles or not roles <= set(KEY_ROLES):
        wrong = ", ".join(sorted(roles - set(KEY_ROLES))) or "none"
        raise ConfigError(f"roles are {', '.join(KEY_ROLES)}; got {wrong}")
    for what, value in (
        ("lifetime", lifetime_s),
        ("requests per minute", requests_per_minute),
        ("concurrent requests", max_concurrent),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{what} must be above 0, got {value}")

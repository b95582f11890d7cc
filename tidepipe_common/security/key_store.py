"""The file with the API keys: SQLite, so that `tidepipe keys` may write while routers read."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import structlog

from tidepipe_common.errors import ConfigError, NotFoundError, UnauthenticatedError, UnavailableError
from tidepipe_common.limits import MAX_STORED_BYTES
from tidepipe_common.regular_files import open_file
from tidepipe_common.security.api_key import KEY_ROLES, NOBODY, ApiKey, SecretDigest, new_key, split_key
from tidepipe_common.sqlite_schema import migrate

REFRESH_S = 0.5
"""A running router knows new and revoked keys after so long."""
GRACE_S = 2.0
"""What was read last holds for so long when the file is locked by a writer just then."""
_WRITE_WAIT_S = 5.0
_READ_WAIT_S = 0.02
"""A running router reads on its event loop."""
_VERSION_1 = """
CREATE TABLE IF NOT EXISTS api_key (
    key_id TEXT PRIMARY KEY, name TEXT NOT NULL, roles TEXT NOT NULL, created REAL NOT NULL, expires REAL,
    revoked INTEGER NOT NULL DEFAULT 0, requests_per_minute REAL, max_concurrent INTEGER,
    salt BLOB NOT NULL, digest BLOB NOT NULL)
"""  # IF NOT EXISTS: files of before versions were counted have the table, and call themselves version 0
_VERSION_2 = "ALTER TABLE api_key ADD COLUMN tokens_per_minute REAL"
_VERSION_3 = """
ALTER TABLE api_key ADD COLUMN stored_bytes INTEGER;
ALTER TABLE api_key ADD COLUMN stored_items INTEGER;
"""
_VERSION_4 = "ALTER TABLE api_key ADD COLUMN unlearned INTEGER"
_MIGRATIONS = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4)
_LIMITS = "requests_per_minute, max_concurrent, tokens_per_minute, stored_bytes, stored_items"
_COLUMNS = f"key_id, name, roles, created, expires, revoked, {_LIMITS}, unlearned, salt, digest"
_FIRST_LIMIT, _UNLEARNED, _SALT = 6, 11, 12
_WORDS = {"max_concurrent": "concurrent requests"}
_HEADER_BYTES = 100
"""SQLite's: among them a counter that each change moves on, also two within one tick of the file's clock."""

_INVALID = "the API key is not valid: unknown, wrong, expired or revoked"
_LOST = "API keys cannot be checked at the moment; try again, and tell the operator if it lasts"

log = structlog.get_logger()

Known = dict[str, tuple[ApiKey, SecretDigest]]


class KeyStore:
    """Keys in one file, which is made when the first key is added, readable by its owner alone.

    For people: ConfigError from `add`, `list`, `revoke` and `extend` if the file cannot be read or written,
    or is no key store. For callers: UnavailableError, which does not say where it lies.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds, against which expiry is checked."""
        self._path = path
        self._clock = clock
        self._known: Known = {}
        self._seen: object = None
        self._look_again = 0.0
        self._read_at = 0.0
        self._lost = ""

    def add(
        self,
        name: str,
        roles: Iterable[str],
        *,
        lifetime_s: float | None = None,
        requests_per_minute: float | None = None,
        max_concurrent: int | None = None,
        tokens_per_minute: float | None = None,
        stored_bytes: int | None = None,
        stored_items: int | None = None,
        unlearned: bool = False,
    ) -> tuple[ApiKey, str]:
        """Make a key: its record, and the key itself, which nobody can find out later."""
        wanted = frozenset(roles)
        limits = requests_per_minute, max_concurrent, tokens_per_minute, stored_bytes, stored_items
        named = dict(zip(_LIMITS.split(", "), limits, strict=True))
        _check(name, wanted, {"lifetime": lifetime_s, **named})
        key_id, key, stored = new_key()
        now = self._clock()
        record = ApiKey(
            key_id,
            name,
            wanted,
            now,
            None if lifetime_s is None else now + lifetime_s,
            False,
            *limits,
            unlearned,
        )
        with self._writing(create=True) as database:
            database.execute(
                f"INSERT INTO api_key ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(key_id, name, ",".join(sorted(wanted)), now, record.expires),
                    *(*limits, unlearned, stored.salt, stored.digest),
                ),
            )
        return record, key

    def list(self) -> list[ApiKey]:
        """All keys, oldest first, expired and revoked ones included."""
        try:
            known = self._read(_WRITE_WAIT_S)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        return sorted((key for key, _ in known.values()), key=lambda key: key.created)

    def revoke(self, key_id: str) -> None:
        """The key opens nothing any more, within REFRESH_S also at running routers. NotFoundError."""
        self._change("UPDATE api_key SET revoked = 1 WHERE key_id = ?", key_id, key_id)

    def extend(self, key_id: str, lifetime_s: float) -> None:
        """The key expires so long from now. NotFoundError."""
        end = self._clock() + lifetime_s
        self._change("UPDATE api_key SET expires = ? WHERE key_id = ?", key_id, end, key_id)

    def limit(self, key_id: str, **limits: float | None) -> None:
        """Change limits of a key, and `unlearned`, named as in ApiKey; None lifts one. NotFoundError."""
        assert limits and limits.keys() <= {*_LIMITS.split(", "), "unlearned"}, limits
        _check_limits(limits)
        named = ", ".join(f"{name} = ?" for name in limits)
        self._change(f"UPDATE api_key SET {named} WHERE key_id = ?", key_id, *limits.values(), key_id)

    def authenticate(self, presented: str) -> ApiKey:
        """Whose key this is; UnauthenticatedError if it is not valid, never saying why.

        UnavailableError if the file is lost: nobody is let in on what it once said.
        """
        parts = split_key(presented)
        key_id, secret = parts or ("", presented)
        key, stored = self._current().get(key_id, (None, NOBODY))
        matches = stored.matches(secret)
        if key is None or not matches or self._ended(key):
            raise UnauthenticatedError(_INVALID)
        return key

    def find(self, key_id: str) -> ApiKey | None:
        """The key of an id, if it opens anything. UnavailableError as `authenticate`."""
        key, _ = self._current().get(key_id, (None, NOBODY))
        return None if key is None or self._ended(key) else key

    def known(self, key_id: str) -> ApiKey | None:
        """The key of an id as it was last read; from any thread, and without looking at the file."""
        key, _ = self._known.get(key_id, (None, NOBODY))
        return key

    def _ended(self, key: ApiKey) -> bool:
        return key.revoked or (key.expires is not None and self._clock() >= key.expires)

    def _current(self) -> Known:
        """Read the file again only if it changed, and do not even ask the file system at every request."""
        now = time.monotonic()
        if now < self._look_again:
            if self._lost:
                raise UnavailableError(_LOST)
            return self._known
        self._look_again = now + REFRESH_S
        try:
            seen = self._marks()
            if seen != self._seen or self._lost:
                self._known, self._seen = self._read(_READ_WAIT_S), seen
            self._read_at, self._lost = now, ""
        except (OSError, sqlite3.Error) as error:
            writing = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
            if writing and self._seen is not None and now - self._read_at < GRACE_S:
                self._look_again = now + REFRESH_S / 10
                return self._known
            if str(error) != self._lost:
                log.error("API keys cannot be read", file=str(self._path), reason=str(error))
            self._lost = str(error)
            raise UnavailableError(_LOST) from None
        return self._known

    def _marks(self) -> object:
        """What changes with every change: also if another file takes its place, such as an older copy of it,
        or if SQLite writes beside it (`-wal`) and not into it."""
        about = self._path.stat()
        with open_file(self._path) as file:
            header = file.read(_HEADER_BYTES)
        beside: tuple[int, ...] = ()
        with contextlib.suppress(FileNotFoundError):
            wal = self._path.with_name(self._path.name + "-wal").stat()
            beside = (wal.st_ino, wal.st_mtime_ns, wal.st_size)
        return (
            about.st_ino,
            about.st_dev,
            about.st_ctime_ns,
            about.st_mtime_ns,
            about.st_size,
            header,
            beside,
        )

    def _read(self, wait_s: float) -> Known:
        """As it stands, also if it is of an older version or may not be written."""
        if not self._path.is_file():
            raise FileNotFoundError("there is no such file; make one with `tidepipe keys add`")
        with contextlib.closing(sqlite3.connect(self._path, timeout=wait_s)) as database:
            _refuse_later(database)
            there = {row[1] for row in database.execute("PRAGMA table_info(api_key)")}
            columns = ", ".join(name if name in there else f"NULL AS {name}" for name in _COLUMNS.split(", "))
            rows = database.execute(f"SELECT {columns} FROM api_key").fetchall()
        return {
            row[0]: (
                ApiKey(
                    *(row[0], row[1], frozenset(row[2].split(",")), row[3], row[4], bool(row[5])),
                    *(*row[_FIRST_LIMIT:_UNLEARNED], bool(row[_UNLEARNED])),
                ),
                SecretDigest(*row[_SALT:]),
            )
            for row in rows
        }

    def _change(self, statement: str, key_id: str, *values: object) -> None:
        with self._writing() as database:
            found = database.execute(statement, values).rowcount
        if not found:
            raise NotFoundError(f"there is no key {key_id} in {self._path}; `tidepipe keys list` shows all")

    @contextlib.contextmanager
    def _writing(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if create:
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            elif not self._path.is_file():
                raise FileNotFoundError("there is no such file; make one with `tidepipe keys add`")
            connection = sqlite3.connect(self._path, timeout=_WRITE_WAIT_S, isolation_level=None)
            with contextlib.closing(connection) as database:
                migrate(database, _MIGRATIONS)
                yield database
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> ConfigError:
        why = (isinstance(error, OSError) and error.strerror) or error
        return ConfigError(f"cannot use the API keys in {self._path}: {why}")


def _refuse_later(database: sqlite3.Connection) -> None:
    (found,) = database.execute("PRAGMA user_version").fetchone()
    if found > len(_MIGRATIONS):
        raise sqlite3.DatabaseError(
            f"it was written by a later version of TidePipe (format {found}, here {len(_MIGRATIONS)})"
        )


def _check(name: str, roles: frozenset[str], limits: Mapping[str, float | None]) -> None:
    if not name or not name.isprintable():
        raise ConfigError("a key needs a name that says whose it is")
    if not roles or not roles <= set(KEY_ROLES):
        wrong = ", ".join(sorted(roles - set(KEY_ROLES))) or "none"
        raise ConfigError(f"roles are {', '.join(KEY_ROLES)}; got {wrong}")
    _check_limits(limits)


def _check_limits(limits: Mapping[str, float | None]) -> None:
    for name, value in limits.items():
        if value is not None and not 0 < value <= MAX_STORED_BYTES:
            raise ConfigError(f"{_WORDS.get(name, name.replace('_', ' '))} must be above 0, got {value}")

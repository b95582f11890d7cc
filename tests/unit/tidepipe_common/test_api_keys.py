"""API keys: only their owners get in, within limits, and nothing of them lies in the file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from tidepipe_common.errors import (
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from tidepipe_common.security import key_store
from tidepipe_common.security.api_key import new_key
from tidepipe_common.security.key_access import KeyAccess, Work, bearer, credential
from tidepipe_common.security.key_store import KeyStore


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> bool:
        self.now += seconds
        return True


def test_only_the_right_key_with_the_right_role_opens(tmp_path: Path) -> None:
    clock = Clock()
    store = KeyStore(tmp_path / "keys.db", clock=clock)
    with pytest.raises(ConfigError, match="keys add"):
        store.list()
    _, key = store.add("alice", ["inference"], lifetime_s=60)
    _, other = store.add("root", ["admin"])
    access = KeyAccess(store)
    with access.enter(key, "inference") as lease:
        assert lease.key.name == "alice"
    secret = key.split("-", 2)[2]
    wrong = (
        None,
        "",
        "x",
        secret,
        key[:-1],
        key + "x",
        other.rsplit("-", 1)[0] + "-" + secret,
        "tp--",
        "tp-\udcff-é",
    )
    for presented in wrong:
        with pytest.raises(UnauthenticatedError):
            access.enter(presented, "inference")
    with pytest.raises(PermissionDeniedError, match="admin"):
        access.enter(key, "admin")
    clock.now += 60
    with pytest.raises(UnauthenticatedError):
        access.enter(key, "inference")


def test_the_file_keeps_no_secret_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    _, key = KeyStore(path).add("alice", ["inference"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = key.split("-", 2)[2]
    assert secret.encode() not in path.read_bytes()


def test_revocation_reaches_a_store_that_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_store, "REFRESH_S", 0.0)
    path = tmp_path / "keys.db"
    record, key = KeyStore(path).add("alice", ["inference"])
    running = KeyStore(path)
    assert running.authenticate(key).key_id == record.key_id
    time.sleep(0.01)  # the file's time stamp is what tells
    KeyStore(path).revoke(record.key_id)
    with pytest.raises(UnauthenticatedError):
        running.authenticate(key)
    with pytest.raises(NotFoundError):
        KeyStore(path).revoke("nobody")


RELEASED = """
CREATE TABLE IF NOT EXISTS api_key (
    key_id TEXT PRIMARY KEY, name TEXT NOT NULL, roles TEXT NOT NULL, created REAL NOT NULL, expires REAL,
    revoked INTEGER NOT NULL DEFAULT 0, requests_per_minute REAL, max_concurrent INTEGER,
    salt BLOB NOT NULL, digest BLOB NOT NULL)
"""
"""As files were made before their versions were counted."""


def test_a_file_from_before_there_were_versions(tmp_path: Path) -> None:
    """It is read as it stands, also where it may not be written, and brought up to date by a change."""
    path = tmp_path / "keys.db"
    key_id, key, stored = new_key()
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.execute(RELEASED)
        row = (key_id, "alice", "inference", 1.0, None, 0, 60.0, 2, stored.salt, stored.digest)
        old.execute("INSERT INTO api_key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    before = path.read_bytes()
    found = KeyStore(path).authenticate(key)
    assert (found.name, found.max_concurrent, found.tokens_per_minute) == ("alice", 2, None)
    assert path.read_bytes() == before
    _, newer = KeyStore(path).add("bob", ["inference"], tokens_per_minute=500)
    assert KeyStore(path).authenticate(newer).tokens_per_minute == 500
    assert KeyStore(path).authenticate(key) == found
    with contextlib.closing(sqlite3.connect(path)) as later, later:
        later.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="later version"):
        KeyStore(path).list()


def test_another_file_in_its_place_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restored copy, with the size and the times of the file that it replaces; a change that SQLite wrote
    beside the file; and two changes that the file's clock does not tell apart."""
    monkeypatch.setattr(key_store, "REFRESH_S", 0.0)
    path = tmp_path / "keys.db"
    record, key = KeyStore(path).add("alice", ["inference"])
    shutil.copy2(path, tmp_path / "copy")
    KeyStore(tmp_path / "copy").revoke(record.key_id)
    running = KeyStore(path)
    assert running.authenticate(key)
    about = path.stat()
    os.utime(tmp_path / "copy", ns=(about.st_atime_ns, about.st_mtime_ns))
    (tmp_path / "copy").replace(path)
    with pytest.raises(UnauthenticatedError):
        running.authenticate(key)
    _, other = KeyStore(path).add("bob", ["inference"])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        assert running.authenticate(other)
        writer.execute("UPDATE api_key SET revoked = 1")
        with pytest.raises(UnauthenticatedError):
            running.authenticate(other)


def test_a_lost_file_lets_nobody_in_and_does_not_say_where_it_lay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_store, "REFRESH_S", 0.0)
    path = tmp_path / "keys.db"
    _, key = KeyStore(path).add("alice", ["inference"])
    running = KeyStore(path)
    assert running.authenticate(key)
    path.rename(tmp_path / "away")
    for content in (None, b"no database, but as long as one would be" * 99):
        if content:
            path.write_bytes(content)
        for presented in (key, "tp-a-b"):
            with pytest.raises(UnavailableError) as lost:
                running.authenticate(presented)
            assert str(tmp_path) not in str(lost.value) and "keys.db" not in str(lost.value)
    (tmp_path / "away").rename(path)
    assert running.authenticate(key)


def test_limits_of_a_key(tmp_path: Path) -> None:
    clock = Clock()
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.add("alice", ["inference"], requests_per_minute=60, max_concurrent=2)
    access = KeyAccess(store, clock=clock)
    first = access.enter(key, "inference")
    first.release()
    first.release()
    for _ in range(9):  # ten seconds' worth, one of which is used
        access.enter(key, "inference").release()
    with pytest.raises(OverloadedError, match="a minute") as full:
        access.enter(key, "inference")
    assert full.value.retry_after_ms == 1000
    clock.now += 1
    access.enter(key, "inference").release()


def test_limits_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at a router that runs; what is not named stays as it is."""
    monkeypatch.setattr(key_store, "REFRESH_S", 0.0)
    store, elsewhere = KeyStore(tmp_path / "keys.db"), KeyStore(tmp_path / "keys.db")
    record, key = store.add("a", ["inference"], max_concurrent=3, stored_bytes=10)
    access = KeyAccess(store)
    with access.enter(key, "inference"):
        assert access.stored(record.key_id) == (10, None) and not access.unlearned(record.key_id)
    elsewhere.limit(record.key_id, stored_bytes=None, stored_items=7, unlearned=True)
    with access.enter(key, "inference") as lease:
        assert access.stored(record.key_id) == (None, 7) and access.unlearned(record.key_id)
        assert lease.key.max_concurrent == 3
    with pytest.raises(ConfigError, match="stored items must be above 0"):
        elsewhere.limit(record.key_id, stored_items=-1)
    with pytest.raises(NotFoundError):
        elsewhere.limit("nobody", stored_items=1)


def test_work_counts_until_it_ends(tmp_path: Path) -> None:
    """Answers and not calls; background work leaves room, and gives way to whoever was refused for it."""
    clock = Clock()
    record, key = KeyStore(tmp_path / "keys.db").add("alice", ["inference"], max_concurrent=4)
    access = KeyAccess(KeyStore(tmp_path / "keys.db"), clock=clock)
    access.enter(key, "inference").release()
    whose = record.key_id
    lines = [access.begin(whose, 1, background=True) for _ in range(3)]
    with pytest.raises(OverloadedError):
        access.begin(whose, 1, background=True)
    one = access.begin(whose, 1, background=False)
    with pytest.raises(OverloadedError, match="4 answers at a time"):
        access.begin(whose, 1, background=False)
    assert one and lines[0] and lines[1] and lines[2]
    one.end(5)
    with pytest.raises(OverloadedError):  # the place is for who was refused
        access.begin(whose, 1, background=True)
    for line in lines:
        line.end(5) if line else None
    large = access.begin(whose, 4, background=True) if clock.pass_(3) else None
    assert large is not None
    large.running(1)
    again = access.begin(whose, 3, background=False)
    assert again and access.usage() == {whose: (4, 20)}
    with pytest.raises(InvalidRequestError, match="at a time"):
        access.begin(whose, 5, background=False)
    assert access.begin("", 99, background=False) is None


def test_tokens_are_charged_in_advance_and_settled(tmp_path: Path) -> None:
    clock = Clock()
    record, _ = KeyStore(tmp_path / "keys.db").add("alice", ["inference"], tokens_per_minute=600)
    access = KeyAccess(KeyStore(tmp_path / "keys.db"), clock=clock)

    def work() -> Work:
        begun = access.begin(record.key_id, 1, background=False)
        assert begun is not None
        return begun

    first, second = work(), work()
    first.charge(500)
    with pytest.raises(OverloadedError) as wait:
        second.charge(200)
    assert wait.value.retry_after_ms == 10_000
    first.end(100)
    second.charge(500)
    second.end(500)
    large = work()
    clock.pass_(60)
    large.charge(6000)  # more than it ever holds: it is let in when nothing is owed, and paid off
    large.end(6000)
    with pytest.raises(OverloadedError) as wait:
        work().charge(1)
    assert wait.value.retry_after_ms == pytest.approx(540_000, rel=0.01)


@pytest.mark.parametrize(
    ("header", "credential"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("", None),
        (None, None),
    ],
)
def test_bearer(header: str | None, credential: str | None) -> None:
    assert bearer(header) == credential


def test_two_keys_are_one_too_many() -> None:
    assert credential({"authorization": "Bearer a", "x-api-key": "a"}) == "a"
    assert credential({"authorization": "Bearer a"}) == credential({"x-api-key": "a"}) == "a"
    with pytest.raises(InvalidRequestError, match="different keys"):
        credential({"authorization": "Bearer a", "x-api-key": "b"})


def test_what_makes_no_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    for name, roles in (("", ["admin"]), ("x", []), ("x", ["root"])):
        with pytest.raises(ConfigError):
            store.add(name, roles)
    (tmp_path / "keys.db").write_text("not a database, but long enough to look like something else" * 9)
    with pytest.raises(ConfigError):
        store.list()

"""API keys: only their owners get in, within limits, and nothing of them lies in the file."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from common.errors import (
    ConfigError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from common.security import key_store
from common.security.key_access import KeyAccess, bearer
from common.security.key_store import KeyStore


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


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


def test_limits_of_a_key(tmp_path: Path) -> None:
    clock = Clock()
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.add("alice", ["inference"], requests_per_minute=60, max_concurrent=2)
    access = KeyAccess(store, clock=clock)
    first, second = access.enter(key, "inference"), access.enter(key, "inference")
    with pytest.raises(OverloadedError, match="at a time"):
        access.enter(key, "inference")
    first.release()
    first.release()
    second.release()
    for _ in range(8):  # ten seconds' worth, two of which are used
        access.enter(key, "inference").release()
    with pytest.raises(OverloadedError, match="a minute") as full:
        access.enter(key, "inference")
    assert full.value.retry_after_ms == 1000
    clock.now += 1
    access.enter(key, "inference").release()


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


def test_what_makes_no_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    for name, roles in (("", ["admin"]), ("x", []), ("x", ["root"])):
        with pytest.raises(ConfigError):
            store.add(name, roles)
    (tmp_path / "keys.db").write_text("not a database, but long enough to look like something else" * 9)
    with pytest.raises(ConfigError):
        store.list()

"""The key that a supervisor makes for itself ends by itself, and is put off while the supervisor lives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from launcher import security
from launcher.config import ClusterConfig
from launcher.security import OWN_KEY_S, ClusterSecurity
from tidepipe_common.security.key_store import KeyStore


async def test_the_supervisors_key_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KeyStore(tmp_path / "keys.db")
    monkeypatch.setattr(security, "RENEW_S", 0.01)
    config = ClusterConfig(model="any", tls="auto", api_keys=str(tmp_path / "keys.db"))
    own = ClusterSecurity.prepare(config, tmp_path)
    (made,) = store.list()
    assert made.expires is not None and made.expires - made.created == pytest.approx(OWN_KEY_S)
    keeper = asyncio.create_task(own.keep_key())
    async with asyncio.timeout(5):
        while (store.list()[0].expires or 0.0) <= made.expires:  # noqa: ASYNC110 - another's file
            await asyncio.sleep(0.01)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    own.close()
    assert store.list()[0].revoked

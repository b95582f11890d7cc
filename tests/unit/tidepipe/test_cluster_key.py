"""The key that a supervisor makes for itself ends by itself, and is put off while the supervisor lives."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from launcher import security
from launcher.config import ClusterConfig
from launcher.plan import upstream_spec
from launcher.security import OWN_KEY_S, ClusterSecurity
from tidepipe_common.errors import ConfigError
from tidepipe_common.security.authority import make_certificates
from tidepipe_common.security.key_store import KeyStore
from tidepipe_common.settings.upstream import UPSTREAM_API_KEY, check_upstream_keys


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


def test_each_upstream_server_gets_its_own_key_and_nobody_else_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UPSTREAM_API_KEY, "of-all")
    monkeypatch.setenv(f"{UPSTREAM_API_KEY}_1", "of-the-second")
    urls = "http://127.0.0.1:1,http://127.0.0.1:2"
    config = ClusterConfig(model="any", upstream=urls, run_dir=str(tmp_path))
    own = ClusterSecurity.prepare(config, tmp_path)

    def shown(module: str, number: int = 0) -> dict[str, str]:
        environment = own.environment(module, number)
        return {name: value for name, value in environment.items() if name.startswith(UPSTREAM_API_KEY)}

    specs = [upstream_spec(config, number, router="127.0.0.1:3") for number in range(2)]
    keys = [shown(spec.module, spec.number) for spec in specs]
    assert keys == [{UPSTREAM_API_KEY: "of-all"}, {UPSTREAM_API_KEY: "of-the-second"}]
    assert shown("router") == shown("controller") == {}
    check_upstream_keys(os.environ, 2)
    with pytest.raises(ConfigError, match=r"_1 is for no server: --upstream names 1\b"):
        check_upstream_keys(os.environ, 1)


def test_certificates_that_are_missing_are_named_before_anything_is_started(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    make_certificates(folder, [], 5)
    config = ClusterConfig(model="any", tls=str(folder), engine="vllm")
    (folder / "stage-worker.pem").unlink(missing_ok=True)
    ClusterSecurity.prepare(config, tmp_path)  # such a cluster starts none
    (folder / "token").unlink()
    with pytest.raises(ConfigError, match="tls/token"):
        ClusterSecurity.prepare(config.model_copy(update={"api_keys": tmp_path / "keys.db"}), tmp_path)
    (folder / "controller.pem").unlink()
    with pytest.raises(ConfigError, match=r"controller\.pem"):
        ClusterSecurity.prepare(config, tmp_path)

"""A router that asks for API keys, an instance, and clients with keys; all in the test's process."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.controller import FakeController, fake_controller
from tests.fakes.router import RunningRouter, running_router
from tidepipe.v1 import inference_pb2_grpc
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.security import key_store
from tidepipe_common.security.authority import CA_FILE, TOKEN_FILE, files_of, make_certificates
from tidepipe_common.security.credentials import CA, CERT, KEY, TOKEN, Credentials
from tidepipe_common.security.key_store import KeyStore
from tidepipe_common.security.principals import ROUTER


@dataclass
class Tenant:
    """One who has a key."""

    key_id: str
    http: httpx.AsyncClient
    stub: inference_pb2_grpc.InferenceServiceAsyncStub
    credentials: Credentials


@dataclass
class Tenants:
    """The router, its instance, and its keys."""

    router: RunningRouter
    controller: FakeController
    store: KeyStore
    ca: Path

    @contextlib.asynccontextmanager
    async def tenant(self, *roles: str, key: str = "", **limits: Any) -> AsyncIterator[Tenant]:
        """Somebody with a new key, or with this one."""
        key_id = key.split("-")[1] if key else ""
        if not key:
            record, key = self.store.add("somebody", roles or ("inference",), **limits)
            key_id = record.key_id
        verify = ssl.create_default_context(cafile=str(self.ca))
        credentials = Credentials(ca_file=self.ca, api_key=key)
        async with (
            httpx.AsyncClient(
                base_url=f"https://{self.router.http}",
                verify=verify,
                timeout=20,
                trust_env=False,
                headers={"authorization": f"Bearer {key}"},
            ) as http,
            open_channel(self.router.address, credentials=credentials) as channel,
        ):
            yield Tenant(key_id, http, inference_pb2_grpc.InferenceServiceStub(channel), credentials)


def secure(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Certificates and token for what runs in this process; the CA's file."""
    patch.setattr(key_store, "REFRESH_S", 0.0)  # new keys open at once
    tls = folder / "tls"
    make_certificates(tls, [], days=1)
    cert, key = files_of(tls, ROUTER)
    for name, path in ((CA, tls / CA_FILE), (CERT, cert), (KEY, key), (TOKEN, tls / TOKEN_FILE)):
        patch.setenv(name, str(path))
    return tls / CA_FILE


@contextlib.asynccontextmanager
async def running_tenants(folder: Path, ca: Path, **settings: Any) -> AsyncIterator[Tenants]:
    """folder: for keys and batches; what is there from an earlier time is gone on with."""
    store = KeyStore(folder / "keys.db")
    store.add("the first", ["monitor"])
    data: dict[str, Any] = {"data_dir": str(folder / "data"), "api_keys": folder / "keys.db"}
    async with fake_controller() as controller, running_router(**data, **settings) as router:
        await controller.register(router.address)
        yield Tenants(router, controller, store, ca)

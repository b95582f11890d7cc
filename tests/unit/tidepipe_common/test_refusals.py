"""Every service of the contract x every kind of credential, over real TLS: who must not get in does not."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import grpc
import pytest

import tidepipe.v1
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.authority import CA_FILE, TOKEN_FILE, files_of, make_certificates
from tidepipe_common.security.credentials import BEARER, Credentials
from tidepipe_common.security.key_access import KeyAccess
from tidepipe_common.security.key_store import KeyStore
from tidepipe_common.security.principals import CLIENTS, ROUTER, RULES, SERVICES

TURNED_AWAY = grpc.StatusCode.UNAVAILABLE  # in the handshake
UNKNOWN, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
DEADLINE_S = 20.0


def contract() -> dict[str, str]:
    """Every service, with one of its methods."""
    found = {}
    for module in pkgutil.iter_modules(tidepipe.v1.__path__):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(f"tidepipe.v1.{module.name}").DESCRIPTOR
            for service in descriptor.services_by_name.values():
                found[service.full_name] = service.methods[0].name
    return found


async def start(credentials: Credentials, keys: KeyAccess | None = None) -> RpcServer:
    """A server with all services, none of which does anything."""
    server = RpcServer("127.0.0.1:0", credentials=credentials, keys=keys)

    async def nothing(request: bytes, context: object) -> bytes:
        return b""

    for service, method in contract().items():
        handler = grpc.unary_unary_rpc_method_handler(nothing)
        server.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
    await server.start([])
    return server


async def outcome(address: str, credentials: Credentials, service: str) -> grpc.StatusCode:
    """How a call ends."""
    async with open_channel(address, credentials=credentials) as channel:
        try:
            await channel.unary_unary(f"/{service}/{contract()[service]}")(b"", timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def certificate(folder: Path, principal: str, ca: Path | None = None) -> Credentials:
    cert, key = files_of(folder, principal)
    return Credentials(ca_file=(ca or folder) / CA_FILE, cert_file=cert, key_file=key)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "cluster"
    make_certificates(folder, [], days=1)
    return folder


async def test_ports_that_ask_for_certificates(tls: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "strange", [], days=1)
    server = await start(certificate(tls, ROUTER))
    try:
        for service in contract():
            for outsider in (
                Credentials(),
                Credentials(ca_file=tls / CA_FILE),
                Credentials(ca_file=tls / CA_FILE, token_file=tls / TOKEN_FILE),
                certificate(tmp_path / "strange", ROUTER, ca=tls),
            ):
                assert await outcome(server.address, outsider, service) is TURNED_AWAY
            for principal in (*SERVICES, *CLIENTS):
                expected = grpc.StatusCode.OK if principal in RULES[service].allowed else DENIED
                got = await outcome(server.address, certificate(tls, principal), service)
                assert got is expected, (service, principal)
    finally:
        await server.stop(0)


async def test_ports_that_ask_for_keys(tls: Path, tmp_path: Path) -> None:
    clock = [1000.0]
    store = KeyStore(tmp_path / "keys.db", clock=lambda: clock[0])
    keys = {role: store.add(role, [role])[1] for role in ("inference", "admin", "monitor")}
    expired = store.add("old", ["inference", "admin"], lifetime_s=1)[1]
    revoked, revoked_key = store.add("gone", ["inference", "admin"])
    store.revoke(revoked.key_id)
    clock[0] += 2
    ca, (cert, key) = tls / CA_FILE, files_of(tls, ROUTER)
    own = Credentials(ca, cert, key, token_file=tls / TOKEN_FILE, clients=BEARER)
    wrong_token = tmp_path / "token"
    wrong_token.write_text("not the token of this cluster")
    server = await start(own, KeyAccess(store))
    try:
        for service in contract():
            assert await outcome(server.address, Credentials(), service) is TURNED_AWAY
            for presented in ("", "tp-x-y", keys["admin"] + "x", expired, revoked_key):
                who = Credentials(ca_file=ca, api_key=presented)
                assert await outcome(server.address, who, service) is UNKNOWN, (service, presented)
            who = Credentials(ca_file=ca, token_file=wrong_token)
            assert await outcome(server.address, who, service) is UNKNOWN
            for role, secret in keys.items():
                expected = grpc.StatusCode.OK if f"client/{role}" in RULES[service].allowed else DENIED
                got = await outcome(server.address, Credentials(ca_file=ca, api_key=secret), service)
                assert got is expected, (service, role)
            token = Credentials(ca_file=ca, token_file=tls / TOKEN_FILE)
            expected = grpc.StatusCode.OK if RULES[service].allowed & set(SERVICES) else DENIED
            assert await outcome(server.address, token, service) is expected, service
    finally:
        await server.stop(0)

"""Knocks at one port with one credential, with nothing of TidePipe's client between."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tidepipe_common.security.authority import CA_FILE, CA_KEY_FILE, Authority, files_of, make_certificates
from tidepipe_common.security.key_store import KeyStore
from tidepipe_common.security.principals import CLIENTS, SERVICES

DEADLINE_S = 20.0
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
HANDSHAKE, ANSWERED = "handshake", "answered"
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@dataclass(frozen=True, slots=True)
class Credential:
    """What is presented. tls: speak it. ca: whom the client trusts. bearer: an API key or a token."""

    tls: bool = True
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    bearer: str = ""


async def call_grpc(address: str, method: str, credential: Credential) -> str:
    """How an empty request to /SERVICE/METHOD ends: in the handshake, with a status, or answered."""
    if credential.tls:
        files = (credential.ca, credential.key, credential.cert)
        tls = grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))
        channel = grpc.aio.secure_channel(address, tls, options=_OPTIONS)
    else:
        channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    metadata = (("authorization", f"Bearer {credential.bearer}"),) if credential.bearer else ()
    async with channel:
        call: Any = channel.unary_stream(method)  # bytes in, bytes out
        try:
            async for _ in call(b"", timeout=DEADLINE_S, metadata=metadata):
                return ANSWERED
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return HANDSHAKE
            if error.code() in _REFUSALS:
                return error.code().name
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:  # the service has looked at the request
                return f"{error.code().name}: {error.details()}"
    return ANSWERED


async def call_http(address: str, path: str, credential: Credential) -> str:
    """How a GET ends: in the handshake, with a status, or answered."""
    verify: ssl.SSLContext | bool = False
    if credential.tls:
        verify = ssl.create_default_context(cafile=credential.ca)
        if credential.cert is not None:
            verify.load_cert_chain(credential.cert, credential.key)
    url = f"{'https' if credential.tls else 'http'}://{address}{path}"
    headers = {"authorization": f"Bearer {credential.bearer}"} if credential.bearer else {}
    async with httpx.AsyncClient(verify=verify, timeout=DEADLINE_S, trust_env=False) as client:
        try:
            # Some answers have no end: the status is enough.
            async with client.stream("GET", url, headers=headers) as response:
                status = response.status_code
        except httpx.TimeoutException:
            return "no answer"
        except httpx.TransportError:
            return HANDSHAKE
    return ANSWERED if status == httpx.codes.OK else str(status)


class Certificates:
    """Those of a cluster, and those that must not open it."""

    def __init__(self, tls: Path, folder: Path) -> None:
        """tls: the cluster's. folder: where the others are made."""
        self._tls = tls
        self._foreign = folder / "foreign"
        make_certificates(self._foreign, [], days=1)
        self._expired = folder / "expired"
        self._expired.mkdir()
        ca_key = serialization.load_pem_private_key((tls / CA_KEY_FILE).read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        ca = Authority(ca_key, x509.load_pem_x509_certificate((tls / CA_FILE).read_bytes()))
        for principal in (*SERVICES, *CLIENTS):
            key, certificate = ca.issue(principal, [], -timedelta(minutes=1))
            cert_file, key_file = files_of(self._expired, principal)
            cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            key_file.write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))

    @property
    def nobody(self) -> Credential:
        """TLS without a certificate."""
        return Credential(ca=self._tls / CA_FILE)

    def valid(self, principal: str) -> Credential:
        """The principal's own."""
        return self._of(self._tls, principal)

    def foreign(self, principal: str) -> Credential:
        """In the principal's name, but of another CA."""
        return self._of(self._foreign, principal)

    def expired(self, principal: str) -> Credential:
        """Of the cluster's CA, until a minute ago."""
        return self._of(self._expired, principal)

    def bearer(self, secret: str) -> Credential:
        """No certificate, but a key or token."""
        return Credential(ca=self._tls / CA_FILE, bearer=secret)

    def _of(self, folder: Path, principal: str) -> Credential:
        cert, key = files_of(folder, principal)
        return Credential(ca=self._tls / CA_FILE, cert=cert, key=key)


class Keys:
    """API keys of a store: one of each role, and those that must not open anything."""

    def __init__(self, file: Path, roles: Sequence[str]) -> None:
        """file: the store, made if it is not there."""
        store = KeyStore(file)
        self.of_role = {role: store.add(role, [role])[1] for role in roles}
        past = KeyStore(file, clock=lambda: time.time() - 60)
        self.expired = past.add("expired", roles, lifetime_s=1)[1]
        record, self.revoked = store.add("revoked", roles)
        store.revoke(record.key_id)
        self.unknown = KeyStore(file.with_name("foreign.db")).add("foreign", roles)[1]

    @property
    def secrets(self) -> list[str]:
        """All of them."""
        return [*self.of_role.values(), self.expired, self.revoked, self.unknown]

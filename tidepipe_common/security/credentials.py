"""How a process proves who it is, and what it asks of others."""

from __future__ import annotations

import datetime
import hmac
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.regular_files import read_bytes

CERT, KEY, CA = "TIDEPIPE_TLS_CERT", "TIDEPIPE_TLS_KEY", "TIDEPIPE_TLS_CA"
TOKEN, CLIENTS, INSECURE = "TIDEPIPE_CLUSTER_TOKEN_FILE", "TIDEPIPE_TLS_CLIENTS", "TIDEPIPE_INSECURE"
API_KEY = "TIDEPIPE_API_KEY"
CERTIFICATE, BEARER = "certificate", "bearer"


@dataclass(frozen=True)
class Credentials:
    """Files and secrets of one process; without a CA file it neither speaks nor expects TLS.

    ca_file: whose certificates it trusts. cert_file, key_file: its own; a server needs them, a client may.
    token_file: the cluster token, which services present and accept where certificates are not asked for;
    without TLS it keeps strangers on this machine from calling services, and clients need none.
    api_key: what a client presents. clients: what a server asks its clients for, `certificate` (mutual TLS)
    or `bearer` (TLS of the server alone, and a token or API key with every call).
    insecure: may listen beyond the loopback without TLS.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None
    api_key: str = field(default="", repr=False)
    clients: str = CERTIFICATE
    insecure: bool = False

    @property
    def secure(self) -> bool:
        """True if it speaks TLS."""
        return self.ca_file is not None

    @property
    def asks(self) -> bool:
        """True if a server of this process asks some of its callers who they are."""
        return self.secure or bool(self.token)

    @cached_property
    def token(self) -> str:
        """The cluster token; empty if there is none."""
        if self.token_file is None:
            return ""
        token = _read(self.token_file).decode("utf-8", "replace").strip()
        if len(token) < 16 or not token.isascii() or not token.isprintable():
            raise ConfigError(f"{self.token_file} holds no cluster token: 16 printable characters at least")
        return token

    @property
    def bearer(self) -> str:
        """What it presents with every call beside its certificate; empty for nothing."""
        return self.api_key or self.token

    def bearer_to(self, address: str) -> str:
        """What it presents to HOST:PORT with every call; empty for nothing.

        Without TLS that is the token, and only within this machine (or a network that is said to be closed):
        ConfigError elsewhere.
        """
        if self.secure or not self.token:
            return self.bearer
        if not (self.insecure or is_loopback(address.rpartition(":")[0])):
            raise ConfigError(
                f"the cluster token must not travel to {address} in the clear: give --tls-ca too, or "
                "--insecure if the network itself keeps strangers out"
            )
        return self.token

    def accepts_token(self, presented: str) -> bool:
        """True for the cluster token, in time that does not depend on where they differ."""
        return bool(self.token) and hmac.compare_digest(presented.encode(), self.token.encode())

    def check(self, *, server: bool) -> None:
        """ConfigError if what is given does not fit together, cannot be read, or has expired."""
        if self.clients not in (CERTIFICATE, BEARER):
            raise ConfigError(f"--tls-clients must be {CERTIFICATE} or {BEARER}, got {self.clients!r}")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError(
                f"the API key ({API_KEY}) must be printable ASCII, as `tidepipe keys add` prints it"
            )
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("a certificate needs its key: give --tls-cert and --tls-key together")
        if self.ca_file is None:
            if self.cert_file is not None:
                raise ConfigError("give --tls-ca too: the certificates to trust")
            if self.api_key:
                raise ConfigError("an API key must not travel in the clear: give --tls-ca too")
            _ = self.token
            return
        if server and self.cert_file is None:
            raise ConfigError("a service needs a certificate of its own: give --tls-cert and --tls-key")
        self.server_context() if server else self._trusted(ssl.PROTOCOL_TLS_CLIENT)
        now = datetime.datetime.now(datetime.UTC)
        for file in (self.ca_file, self.cert_file):
            if file is not None:
                refuse_out_of_time(file, now)
        _ = self.token

    def pem(self) -> tuple[bytes, bytes | None, bytes | None]:
        """(CA, key, certificate), the latter two None if it has none of its own."""
        assert self.ca_file is not None
        own = (None, None)
        if self.key_file is not None and self.cert_file is not None:
            return _read(self.ca_file), _read(self.key_file), _read(self.cert_file)
        return _read(self.ca_file), *own

    def server_context(self, *, ask: bool = False) -> ssl.SSLContext:
        """For HTTPS. ask: clients must have a certificate of the CA."""
        context = self._trusted(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED if ask else ssl.CERT_NONE
        return context

    def _trusted(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        for file in (self.ca_file, self.cert_file, self.key_file):
            if file is not None:
                _ = _read(file)  # by itself, so that its name is told
        try:
            context.load_verify_locations(self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file)
            raise ConfigError(f"cannot use the certificates {names}: {error.strerror or error}") from error
        return context

    def check_listen(self, listen: str) -> None:
        """ConfigError if a server must not listen there as it is."""
        if not (self.secure or self.insecure or is_loopback(listen.rpartition(":")[0])):
            raise ConfigError(
                f"refusing to listen on {listen} without TLS, where others could reach it: give certificates "
                "(`tidepipe certs make`), or --insecure if the network itself keeps strangers out"
            )


def is_loopback(host: str) -> bool:
    """True if only processes of this machine can connect to it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def from_environment(environment: Mapping[str, str] = os.environ) -> Credentials:
    """What the environment says; see docs/guide/security.md."""

    def path(name: str) -> Path | None:
        return Path(environment[name]) if environment.get(name) else None

    return Credentials(
        ca_file=path(CA),
        cert_file=path(CERT),
        key_file=path(KEY),
        token_file=path(TOKEN),
        api_key=environment.get(API_KEY, ""),
        clients=environment.get(CLIENTS) or CERTIFICATE,
        insecure=environment.get(INSECURE, "") in ("1", "true", "yes"),
    )


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def expiry(path: Path) -> datetime.datetime:
    """When a certificate ends, UTC; ConfigError if the file cannot be read or is none."""
    return _lifetimes(path)[0][1]


def _lifetimes(path: Path) -> list[tuple[datetime.datetime, datetime.datetime]]:
    """Begin and end of each certificate of a file."""
    from cryptography import x509  # late: the client is installed without it

    try:
        found = x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate: {error}") from error
    return [(one.not_valid_before_utc, one.not_valid_after_utc) for one in found]


def refuse_out_of_time(path: Path, now: datetime.datetime) -> None:
    """ConfigError if no certificate of a file is valid at this time (UTC)."""
    try:
        lifetimes = _lifetimes(path)
    except ModuleNotFoundError:
        return  # a client alone, which learns it when nobody answers; a service has what it takes
    if any(begin <= now < end for begin, end in lifetimes):
        return
    begin, end = lifetimes[0]
    if end <= now:
        raise ConfigError(
            f"the certificate {path} expired on {end:%Y-%m-%d %H:%M} UTC; renew it: `tidepipe certs renew`"
        )
    raise ConfigError(
        f"the certificate {path} is valid from {begin:%Y-%m-%d %H:%M} UTC on, and this machine's clock says "
        f"{now:%Y-%m-%d %H:%M}: set the clock right"
    )

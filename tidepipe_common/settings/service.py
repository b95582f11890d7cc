"""The settings that every service has."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from tidepipe_common.security.credentials import Credentials
from tidepipe_common.settings.fields import (
    Listen,
    LogLevel,
    MetricsPort,
    Otlp,
    TlsAuthority,
    TlsCertificate,
    TlsClients,
    TlsKey,
    TlsUnneeded,
    TokenFile,
)


class Strict(BaseModel):
    """A model of settings: nothing unknown, nothing of another type, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SecuritySettings(Strict):
    """Who a process is, and what it asks of others (docs/guide/security.md)."""

    tls_cert: TlsCertificate | None = None
    tls_key: TlsKey | None = None
    tls_ca: TlsAuthority | None = None
    cluster_token: TokenFile | None = None
    tls_clients: TlsClients = "certificate"
    insecure: TlsUnneeded = False

    @property
    def credentials(self) -> Credentials:
        """Of the process."""
        return Credentials(
            ca_file=self.tls_ca,
            cert_file=self.tls_cert,
            key_file=self.tls_key,
            token_file=self.cluster_token,
            clients=self.tls_clients,
            insecure=self.insecure,
        )


class ServiceSettings(SecuritySettings):
    """What every service is told. service: its package."""

    service: ClassVar[str]

    listen: Listen = "127.0.0.1:0"
    metrics_port: MetricsPort | None = None
    otlp: Otlp = ""
    log_level: LogLevel = "info"

"""How clients reach a secured cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.security.credentials import Credentials
from common.security.process import own


def client_credentials(
    *,
    api_key: str | None = None,
    tls_ca: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
) -> Credentials:
    """What is given, over TIDEPIPE_API_KEY, TIDEPIPE_TLS_CA, TIDEPIPE_TLS_CERT and TIDEPIPE_TLS_KEY.

    api_key: as `tidepipe keys add` printed it. tls_ca: whose certificates to trust. tls_cert, tls_key: own
    certificate, for clusters that ask for one. All files are PEM.
    """
    default = own()
    return replace(
        default,
        api_key=api_key or default.api_key,
        ca_file=Path(tls_ca) if tls_ca else default.ca_file,
        cert_file=Path(tls_cert) if tls_cert else default.cert_file,
        key_file=Path(tls_key) if tls_key else default.key_file,
    )


def no_answer(endpoint: str, credentials: Credentials | None) -> str:
    """Why a connection may have failed; TLS alone does not say more to those whom it turns away."""
    if (credentials or own()).secure:
        hint = "check that it speaks TLS under this name and CA, and asks for no certificate that you lack"
    else:
        hint = "if it is secured, give --tls-ca (and --api-key, or a certificate)"
    return f"no TidePipe router answers at {endpoint}; {hint}"

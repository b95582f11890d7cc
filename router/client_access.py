"""The router's clients, told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.security.credentials import BEARER, Credentials
from tidepipe_common.security.key_access import KeyAccess
from tidepipe_common.security.key_store import KeyStore


def client_access(api_keys: Path | None, credentials: Credentials) -> tuple[Credentials, KeyAccess | None]:
    """By certificate, or, with a file of API keys, by key: (credentials for the router's port, keys or None).

    One port cannot do both: who asks for certificates turns away whoever has none. So with API keys the
    controllers show the cluster token here; between all other services certificates stay in force.
    ConfigError if keys are wanted without TLS, without a token, or from a file that is not there.
    """
    if api_keys is None:
        return credentials, None
    if not credentials.secure:
        raise ConfigError(
            "API keys must not travel in the clear: give --tls-cert, --tls-key and --tls-ca as well"
        )
    if not credentials.token:
        raise ConfigError("with --api-keys give --cluster-token too, or no controller could register")
    store = KeyStore(api_keys)
    store.list()
    return replace(credentials, clients=BEARER), KeyAccess(store)

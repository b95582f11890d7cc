"""Credentials as gRPC wants them."""

from __future__ import annotations

import grpc

from tidepipe_common.security.credentials import CERTIFICATE, Credentials


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials | None:
    """For a channel; None for one in the clear. ConfigError if files cannot be read.

    What is presented with every call beside the certificate is apart: see `tidepipe_common.rpc.token`.
    """
    credentials.check(server=False)
    if not credentials.secure:
        return None
    ca, key, certificate = credentials.pem()
    return grpc.ssl_channel_credentials(ca, key, certificate)


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials | None:
    """For a port; None for one in the clear. ConfigError if files are missing or cannot be used."""
    credentials.check(server=True)
    if not credentials.secure:
        return None
    ca, key, certificate = credentials.pem()
    assert key is not None
    assert certificate is not None
    ask = credentials.clients == CERTIFICATE
    return grpc.ssl_server_credentials([(key, certificate)], ca if ask else None, require_client_auth=ask)

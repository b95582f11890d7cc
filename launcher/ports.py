"""Ports of a local cluster."""

from __future__ import annotations

import random
import socket

from tidepipe_common.errors import ConfigError

# Below the range from which the kernel takes the ports of outgoing connections: a service that is being
# restarted does not find its port taken by somebody's connection.
_CANDIDATES = range(20_000, 32_000)
_TRIES = 200


def choose_port(host: str, wanted: int) -> int:
    """`wanted` if it can be listened on (ConfigError if not), or a free port if it is 0."""
    if wanted:
        reason = _why_not(host, wanted)
        if reason:
            raise ConfigError(
                f"cannot listen on {join(host, wanted)}: {reason}; choose another port, or 0 for a free one"
            )
        return wanted
    reason = "no address"
    for _ in range(_TRIES):
        port = random.choice(_CANDIDATES)
        reason = _why_not(host, port)
        if not reason:
            return port
    raise ConfigError(f"found no free port on {host}: {reason}")


def join(host: str, port: int) -> str:
    """HOST:PORT; IPv6 addresses get their brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(host: str, port: int) -> str:
    """Why host:port cannot be listened on; empty if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the services do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""

"""Ports of a local cluster."""

from __future__ import annotations

import errno
import random
import socket
from collections import deque

from tidepipe_common.errors import ConfigError

# Below the range from which the kernel takes the ports of outgoing connections: a service that is being
# restarted does not find its port taken by somebody's connection.
_CANDIDATES = range(20_000, 32_000)
_TRIES = 200

_GIVEN: deque[socket.socket] = deque(maxlen=256)
"""What keeps a port that was found free for the service that will listen on it, once it has started: other
clusters that start meanwhile, and this one's next service, look for free ports, too."""


def choose_port(host: str, wanted: int) -> int:
    """`wanted` if it can be listened on (ConfigError if not), or a free port if it is 0."""
    if wanted:
        reason = _why_not(host, wanted)
        if reason:
            raise ConfigError(f"cannot listen on {join(host, wanted)}: {reason}")
        _keep(wanted)  # from those who take any; who names it as well is told by its own start
        return wanted
    if reason := _why_not(host, 0):
        raise ConfigError(f"cannot listen on {host}: {reason}")
    for _ in range(_TRIES):
        port = random.choice(_CANDIDATES)
        if not _why_not(host, port) and _keep(port):
            return port
    raise ConfigError(f"found no free port on {host} from {_CANDIDATES.start} to {_CANDIDATES.stop - 1}")


def own_loopback(number: int) -> str:
    """A loopback address that the number's alone is; empty if this system has but one."""
    host = f"127.0.0.{2 + number % 250}"
    return "" if _why_not(host, 0) else host


def join(host: str, port: int) -> str:
    """HOST:PORT; IPv6 addresses get their brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _keep(port: int) -> bool:
    """False if it was given out already. Names like this end with the process, and are the network's own."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        name.bind(f"\0tidepipe port {port}")
    except OSError:
        name.close()
        return False
    if len(_GIVEN) == _GIVEN.maxlen:
        _GIVEN.popleft().close()
    _GIVEN.append(name)
    return True


def _why_not(host: str, port: int) -> str:
    """Why host:port cannot be listened on, and what to do; empty if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the services do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            return f"{reason}; --host must be an address of this machine"
        return f"{reason}; choose another port, or 0 for a free one"
    return ""

"""Descriptors of this process: how many there are, and who may use how many of them.

Every connection takes one, and who takes the last one shuts everybody out. So each door has a share of its
own, and what the process needs for itself (files, its own channels) is no part of any.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

MOST = 65_536
"""More than any process here can use; some systems allow a thousand million."""
REQUESTS = 4096
"""That a router accepts at a time, unless told otherwise: as many streams over HTTP as may be asked for."""
FEWEST_RESERVED, MOST_RESERVED = 64, 1024
MOST_HTTP, MOST_RPC = 16_384, 8_192
METRICS_CONNECTIONS = 32
"""Of a listener for metrics alone: a few scrapers."""


def raise_limit() -> int:
    """Raise the soft limit to the hard one, as every server does at its start; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(MOST, _finite(hard))
    if _finite(soft) < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def limit() -> int:
    """Descriptors that this process may have."""
    return min(MOST, _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


@dataclass(frozen=True, slots=True)
class Shares:
    """Connections that each door may have."""

    http: int
    rpc: int


def shares(descriptors: int) -> Shares:
    """How a process with so many descriptors deals them out: most of them to HTTP, where a client is one."""
    reserved = min(MOST_RESERVED, max(FEWEST_RESERVED, descriptors // 8)) + METRICS_CONNECTIONS
    free = max(2, descriptors - reserved)
    rpc = min(MOST_RPC, max(1, free // 4))
    return Shares(http=min(MOST_HTTP, max(1, free - rpc)), rpc=rpc)


def too_few(connections: int, streams: int = REQUESTS) -> str:
    """What to tell the operator if fewer HTTP connections than streams can be had; empty if they suffice."""
    if connections >= streams:
        return ""
    return (
        f"{connections} HTTP connections at a time, for {limit()} open files are allowed here, and a router "
        f"accepts {streams} requests: for that many streams raise the limit (ulimit -n, LimitNOFILE=, docker "
        f"--ulimit nofile=) to {streams * 3 // 2 + MOST_RESERVED}"
    )


def _finite(value: int) -> int:
    return MOST if value == resource.RLIM_INFINITY else value

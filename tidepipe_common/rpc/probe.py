"""`python -m tidepipe_common.rpc.probe ADDRESS`: exit code 0 if the service there is serving, 1 if not.

ADDRESS is `unix:PATH`, the socket named by TIDEPIPE_HEALTH_SOCKET (cheap: for checks that run for ever), or
HOST:PORT, which asks the standard grpc.health.v1 service. Imports what it needs only when it needs it.
"""

from __future__ import annotations

import sys

TIMEOUT_S = 3.0
SERVING = b"SERVING\n"
UNIX = "unix:"


def probe_socket(path: str) -> bool:
    """True if the process behind a Unix socket says that it serves."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            said = b""
            while not said.endswith(b"\n") and (more := connection.recv(64)):
                said += more
            return said == SERVING
    except OSError:
        return False


def probe_service(address: str) -> bool:
    """True if the process at HOST:PORT reports SERVING."""
    import asyncio

    from tidepipe_common.rpc.channel import is_serving, open_channel

    async def ask() -> bool:
        async with open_channel(address) as channel:
            return await is_serving(channel, TIMEOUT_S)

    return asyncio.run(ask())


def main() -> int:
    """Entry point; the exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    address = sys.argv[1]
    serving = probe_socket(address.removeprefix(UNIX)) if address.startswith(UNIX) else probe_service(address)
    if not serving:
        print(f"{address} is not serving", file=sys.stderr)
    return 0 if serving else 1


if __name__ == "__main__":
    sys.exit(main())

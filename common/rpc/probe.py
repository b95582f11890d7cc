"""`python -m common.rpc.probe HOST:PORT`: exit code 0 if the service there is serving, 1 if not.

For containers' health checks; asks the standard grpc.health.v1 service.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from common.rpc.channel import is_serving, open_channel


async def probe(address: str, timeout: float) -> bool:
    """True if the process at HOST:PORT reports SERVING within `timeout` seconds."""
    async with open_channel(address) as channel:
        return await is_serving(channel, timeout)


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser("python -m common.rpc.probe", description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds")
    options = parser.parse_args()
    if asyncio.run(probe(options.address, options.timeout)):
        return 0
    print(f"{options.address} is not serving", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

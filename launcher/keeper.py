"""A router that can be restarted in its place: `python -m launcher.keeper router --listen ...`.

For containers and systemd, where nobody else could start a successor beside it: SIGHUP does that, SIGTERM
ends it in order. A router that dies is started again; if it cannot be kept alive, this process ends as well.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from launcher.child import Child, ChildSpec
from launcher.renewal import Renewal
from tidepipe_common.errors import TidePipeError
from tidepipe_common.telemetry.logs import configure_logging

EXIT_FAILED = 3
READY_S = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="keeper", description="Keeps a router, and replaces it on SIGHUP.")
    parser.add_argument("service", choices=["router"])
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    options, rest = parser.parse_known_args(arguments)
    configure_logging("keeper", "info")
    spec = ChildSpec("router", options.service, rest, READY_S, hands_over=True)
    return asyncio.run(_keep(spec, options.listen))


async def _keep(spec: ChildSpec, listen: str) -> int:
    child = Child(spec, listen, None)
    renewal, stopping = Renewal(child), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    keeping: asyncio.Task[None] | None = None
    waiting = asyncio.create_task(stopping.wait())
    try:
        await child.start()
        renewal.ready = True
        keeping = asyncio.create_task(child.keep_alive())
        await asyncio.wait({keeping, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
    except TidePipeError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    finally:
        renewal.end()
        for task in (keeping, waiting):
            if task is not None:
                task.cancel()
        await child.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

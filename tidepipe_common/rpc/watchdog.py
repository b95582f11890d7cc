"""The watchdog of an event loop: a process whose loop is blocked answers nobody, and is ended.

The clock is a thread of the interpreter's own that needs no lock of Python's, so C code that never gives the
lock back is noticed as well. It writes where every thread is to the log; whoever keeps the process alive
starts it anew.
"""

from __future__ import annotations

import asyncio
import faulthandler
import sys

BLOCKED_S = 60.0
"""Far beyond what a busy machine makes of a loop; a process that was stopped for longer ends as well."""
LOOK_S = 5.0


async def watch_loop(blocked_s: float = BLOCKED_S, look_s: float = LOOK_S) -> None:
    """Run for as long as the loop is to be watched; until cancelled."""
    try:
        while True:
            faulthandler.dump_traceback_later(blocked_s, exit=True, file=sys.stderr)
            await asyncio.sleep(look_s)
    finally:
        faulthandler.cancel_dump_traceback_later()

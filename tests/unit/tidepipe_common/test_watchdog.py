"""A process whose event loop is blocked says where, and ends; one that is merely busy goes on."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, time
from tidepipe_common.rpc.watchdog import watch_loop

async def main():
    watch = asyncio.create_task(watch_loop(blocked_s=1.0, look_s=0.1))
    for _ in range(4):
        await asyncio.sleep(0.3)
        time.sleep(0.2)
    print("was busy", flush=True)
    {end}

asyncio.run(main())
print("ended", flush=True)
"""


def run(end: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.replace("{end}", end)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_a_blocked_loop_ends_its_process() -> None:
    blocked = run("time.sleep(50)")
    assert blocked.stdout == "was busy\n"
    assert blocked.returncode == 1
    assert "in main" in blocked.stderr


def test_a_busy_loop_goes_on_and_the_watch_ends_with_it() -> None:
    free = run("watch.cancel(); await asyncio.sleep(0.1); time.sleep(1.5)")
    assert (free.stdout, free.returncode) == ("was busy\nended\n", 0)

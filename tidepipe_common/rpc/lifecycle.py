"""The life of a service process: it announces itself, drains on SIGTERM, ends with its parent.

The process that starts a service may pass a pipe in TIDEPIPE_READY_FD and gets one JSON line on it:
{"ready": "HOST:PORT", "metrics": "HOST:PORT or empty"} or {"failed": "why", "settings": whether it is the
settings' or the model's fault, which no second try mends}. TIDEPIPE_PARENT_PID makes the
service end when that process is gone, so that not even kill -9 of a supervisor leaves processes behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
import uvloop

from tidepipe_common.descriptors import raise_limit
from tidepipe_common.errors import ConfigError, IncompatibleError, ModelError, TidePipeError
from tidepipe_common.exception_groups import leaves
from tidepipe_common.memory import give_back_large_blocks, settle
from tidepipe_common.rpc.watchdog import watch_loop
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.security.expiry import watch_of
from tidepipe_common.security.process import own, use
from tidepipe_common.settings.command_line import parse_settings
from tidepipe_common.settings.service import ServiceSettings
from tidepipe_common.telemetry.logs import configure_logging
from tidepipe_common.telemetry.loop_lag import PROCESS_LAG

READY_FD = "TIDEPIPE_READY_FD"
PARENT_PID = "TIDEPIPE_PARENT_PID"
EXIT_WRONG_SETTINGS = 2
EXIT_FAILED_TO_START = 3
SUCCEEDED = signal.SIGUSR1
"""Tells a service that its successor serves."""
PRIVATE_UMASK = 0o077
MAX_INTEGER_DIGITS = 640
"""Reading an integer takes the square of its digits, under Python's lock."""

log = structlog.get_logger()
Settings = TypeVar("Settings", bound=ServiceSettings)


class Lifecycle:
    """Handed to a service's body: tells it when to stop, and takes its announcement.

    succeeded: another process has taken its place, so it may finish what it has, however long that takes.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.succeeded = False

    def succeed(self) -> None:
        """Another process has taken its place."""
        self.succeeded = True
        self.stopping.set()

    def announce_ready(self, address: str, metrics: str = "") -> None:
        """Tell the parent (if it asked) that the service answers at HOST:PORT, its metrics at another one."""
        settle()
        log.info("ready", address=address, metrics=metrics or None)
        _announce({"ready": address, "metrics": metrics})


def _announce(message: dict[str, str | bool]) -> None:
    descriptor = os.environ.pop(READY_FD, None)
    if descriptor is None:
        return
    with contextlib.suppress(OSError), os.fdopen(int(descriptor), "w") as pipe:
        pipe.write(json.dumps(message) + "\n")


def settings_or_exit(model: type[Settings], arguments: Sequence[str] | None = None) -> Settings:
    """What a service is started with; if that is wrong the process ends with code 2, and says so once."""
    try:
        return parse_settings(model, arguments)
    except ConfigError as error:
        _announce({"failed": str(error), "settings": True})
        print(f"python -m {model.service}: {error}", file=sys.stderr)
        raise SystemExit(EXIT_WRONG_SETTINGS) from error


def run_service(
    name: str,
    body: Callable[[Lifecycle], Awaitable[None]],
    *,
    log_level: str = "info",
    credentials: Credentials | None = None,
    computes: bool = False,
) -> int:
    """Run a service's body until it returns; the exit code of the process.

    `body` should return soon after `lifecycle.stopping` is set. 0: ended as asked. 2: its settings or its
    model cannot be used. 3: could not start, or broke down (the reason is in the log and, before readiness,
    sent to the parent).
    credentials: who the process is; None: what the environment says. computes: large blocks of memory come
    and go with each step, and are kept.
    """
    configure_logging(name, log_level)
    raise_limit()
    sys.set_int_max_str_digits(MAX_INTEGER_DIGITS)
    if not computes:
        give_back_large_blocks()
    # Prompts stand in much of what a service writes: it is nobody else's to read.
    os.umask(PRIVATE_UMASK)
    if credentials is not None:
        use(credentials)

    async def main() -> None:
        lifecycle = Lifecycle()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lifecycle.stopping.set)
        loop.add_signal_handler(SUCCEEDED, lifecycle.succeed)
        async with asyncio.TaskGroup() as group:
            watchers = [
                group.create_task(_watch_parent(lifecycle.stopping)),
                group.create_task(watch_of(own()).run()),
                group.create_task(watch_loop()),
                group.create_task(PROCESS_LAG.run()),
            ]
            try:
                await body(lifecycle)
            finally:
                for watcher in watchers:
                    watcher.cancel()

    try:
        # uvloop: a service spends much of its time on wake-ups for small messages.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except BaseExceptionGroup as group:
        errors = leaves(group)
        expected = all(isinstance(error, TidePipeError) for error in errors)
        reason = "; ".join(
            str(error) if isinstance(error, TidePipeError) else repr(error) for error in errors
        )
        if expected:
            log.error("failed", reason=reason)
        else:
            log.exception("crashed")
        settings = all(isinstance(error, (ConfigError, IncompatibleError, ModelError)) for error in errors)
        _announce({"failed": reason, "settings": settings})
        return EXIT_WRONG_SETTINGS if settings else EXIT_FAILED_TO_START
    log.info("stopped")
    return 0


async def _watch_parent(stopping: asyncio.Event) -> None:
    expected = os.environ.get(PARENT_PID)
    if expected is None:
        return
    while os.getppid() == int(expected):  # noqa: ASYNC110 (only the kernel knows)
        await asyncio.sleep(0.5)
    log.warning("parent is gone, stopping")
    stopping.set()
    # A parent that was killed will not wait for a long drain.
    await asyncio.sleep(5)
    os._exit(1)

"""One service process: start it, learn its address, restart it when it dies, end it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import structlog

from launcher.log_files import open_log, tail
from tidepipe_common.errors import ConfigError, UnavailableError
from tidepipe_common.rpc.lifecycle import PARENT_PID, READY_FD, SUCCEEDED
from tidepipe_common.settings.defaults import STOPPED_S

log = structlog.get_logger()

MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
FIRST_RESTART_WAIT_S = 0.1
LONGEST_RESTART_WAIT_S = 5.0
KILL_AFTER_S = 12.0
STOPPED_LOOK_S = 1.0
LOG_TAIL_LINES = 15
LEAVES_S = 630.0
"""A router that was succeeded ends by itself before that."""
_FAILED_EXIT_S = 5.0
_MAX_ANNOUNCEMENT_BYTES = 64 * 1024


class ClusterError(UnavailableError):
    """A process of the cluster could not be started, or kept breaking down."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start.

    arguments: all but --listen and --metrics-port. ready_s: limit until it announces itself.
    relies_on_others: it needs the others to finish what it has begun, so it is to be stopped before them.
    metrics: it shall have a port for metrics. prefix: command that runs it, such as one that enters a
    network namespace; it must become the process (exec), not stay as its parent.
    hands_over: a successor can serve beside it (--take-over), until it has finished what it has.
    number: of several that stand for upstream servers, from 0.
    """

    name: str
    module: str
    arguments: Sequence[str]
    ready_s: float
    relies_on_others: bool = False
    metrics: bool = False
    prefix: Sequence[str] = ()
    hands_over: bool = False
    number: int = 0


class Child:
    """Owns one process at a time; after the first start the address stays the same."""

    def __init__(
        self,
        spec: ChildSpec,
        listen: str,
        log_file: Path | None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """listen: HOST:PORT, port 0 for a free one. log_file: None lets the child write to our stderr.

        environment: of the process; None: ours.
        """
        self._environment = os.environ if environment is None else environment
        self._spec = spec
        self._listen = listen
        self._log_file = log_file
        self._process: Process | None = None
        self._changed = asyncio.Event()
        self._renewal: asyncio.Future[None] | None = None
        self._kept = False
        self._leaving: dict[Process, asyncio.Task[None]] = {}
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self.restart_count = 0
        self.ready = False
        """It has been serving once."""
        self.metrics_address = ""

    @property
    def name(self) -> str:
        """Name for people, such as stage_worker-0-1."""
        return self._spec.name

    @property
    def relies_on_others(self) -> bool:
        """See ChildSpec."""
        return self._spec.relies_on_others

    @property
    def address(self) -> str:
        """HOST:PORT where it listens (known after `start`)."""
        return self._listen

    @property
    def pid(self) -> int | None:
        """Process id of the present process."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Start the process; its address when it is ready, ClusterError if it does not get so far.

        ConfigError if it says that its settings or its model cannot be used, however often it is tried.
        """
        reader, writer = os.pipe()
        try:
            self._process = await self._spawn(writer)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        try:
            async with asyncio.timeout(self._spec.ready_s):
                line = await _read_line(reader)
        except TimeoutError as error:
            await self.stop(kill_after_s=0)
            raise ClusterError(
                f"{self.name} was not ready after {self._spec.ready_s:g} s{self._tail()}"
            ) from error
        except BaseException:
            await self.stop(kill_after_s=0)
            raise
        announcement = _parse(line)
        if "ready" in announcement:
            self._listen = announcement["ready"]
            self.metrics_address = announcement.get("metrics", "")
            self.ready = True
            return self._listen
        process = self._process
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAILED_EXIT_S):
                await process.wait()
        await self.stop(kill_after_s=0)
        if "failed" in announcement:
            reason = f"{self.name} could not start: {announcement['failed']}"
            raise ConfigError(reason) if announcement.get("settings") else ClusterError(reason)
        raise ClusterError(
            f"{self.name} ended {how_it_ended(process.returncode)} before it was ready{self._tail()}"
        )

    async def keep_alive(self) -> None:
        """Restart the process whenever it dies, until cancelled; ClusterError when it dies too often."""
        self._kept = True
        try:
            while (process := self._process) is not None:
                pid = process.pid
                code = await self._ended(process)
                if code is None:
                    continue
                if self._renewal is not None:
                    await self._start_anew(self._renewal)
                    continue
                log.warning("process died, restarting", process=self.name, pid=pid, ended=how_it_ended(code))
                await self._restart(code)
                log.info("process is back", process=self.name)
                self._renewed()  # if that was asked for while it was away
        finally:
            self._kept = False
            self._renewed()  # it is taken away: there will be no new process to wait for

    async def renew(self) -> None:
        """A new process, of the program as it is on the disk now; the present one ends in order.

        Returns without one where it is not kept alive any more, as its instance leaves. ClusterError if the
        new one does not come up: one that hands over is then still there.
        """
        process = self._process
        if process is None:
            return
        log.info("renewing", process=self.name, pid=process.pid)
        if self._spec.hands_over:
            await self._hand_over(process)
            return
        if not self._kept:
            return
        renewal = self._renewal = asyncio.get_running_loop().create_future()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(KILL_AFTER_S):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
        try:
            await renewal
        finally:
            self._renewal = None

    def _renewed(self) -> None:
        """Who waits in `renew` does so no longer."""
        if self._renewal is not None and not self._renewal.done():
            self._renewal.set_result(None)

    async def _start_anew(self, renewal: asyncio.Future[None]) -> None:
        """In `keep_alive`, for who waits in `renew`."""
        self._renewal = None
        try:
            await self.start()
        except (ClusterError, ConfigError) as error:
            renewal.set_exception(error)
            await self._restart(0)
        finally:
            if not renewal.done():
                renewal.set_result(None)

    async def _hand_over(self, process: Process) -> None:
        spec = replace(self._spec, arguments=[*self._spec.arguments, "--take-over"])
        successor = Child(spec, self._listen, self._log_file, self._environment)
        successor.metrics_address = self.metrics_address
        await successor.start()
        self._process = successor._process
        self._changed.set()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(SUCCEEDED)
        self._leaving[process] = asyncio.create_task(self._see_off(process))

    async def _see_off(self, process: Process) -> None:
        try:
            async with asyncio.timeout(LEAVES_S):
                await process.wait()
        except TimeoutError:
            log.warning("did not leave in time, killing it", process=self.name, pid=process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            del self._leaving[process]

    async def _ended(self, process: Process) -> int | None:
        """Wait for its end, and bring that about if it is stopped; its exit code.

        None as soon as another process has its place.
        """
        self._changed.clear()
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(process.wait()),
            asyncio.create_task(self._changed.wait()),
            asyncio.create_task(self._kill_if_stopped(process)),
        ]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            return process.returncode if self._process is process else None
        finally:
            for task in tasks:
                task.cancel()

    async def _kill_if_stopped(self, process: Process) -> None:
        stopped_s = 0.0
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            about = psutil.Process(process.pid)
            while True:
                await asyncio.sleep(STOPPED_LOOK_S)
                stopped_s = stopped_s + STOPPED_LOOK_S if about.status() == psutil.STATUS_STOPPED else 0.0
                if stopped_s >= STOPPED_S:
                    log.warning("stopped for too long, killing it", process=self.name, seconds=stopped_s)
                    os.killpg(process.pid, signal.SIGKILL)
                    return

    async def _restart(self, code: int) -> None:
        while True:
            now = time.monotonic()
            if len(self._restarts) == MAX_RESTARTS and now - self._restarts[0] < RESTART_WINDOW_S:
                raise ClusterError(
                    f"{self.name} ended {MAX_RESTARTS + 1} times within {RESTART_WINDOW_S:g} s, "
                    f"last {how_it_ended(code)}{self._tail()}"
                )
            recent = sum(now - moment < RESTART_WINDOW_S for moment in self._restarts)
            self._restarts.append(now)
            self.restart_count += 1
            await asyncio.sleep(min(LONGEST_RESTART_WAIT_S, FIRST_RESTART_WAIT_S * 3**recent))
            try:
                await self.start()
            except (ClusterError, ConfigError) as error:
                log.warning("restart failed", process=self.name, reason=str(error))
            else:
                return

    async def stop(self, kill_after_s: float = KILL_AFTER_S) -> None:
        """SIGTERM, then SIGKILL to it and whatever it started; returns when the process is gone."""
        leaving = list(self._leaving.values())
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        process = self._process
        self._process = None
        if process is None:
            return
        if process.returncode is None and kill_after_s > 0:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(kill_after_s):
                    await process.wait()
            except TimeoutError:
                # Who is given less than that has nothing to lose: a worker that is giving its memory back.
                say = log.warning if kill_after_s >= KILL_AFTER_S else log.debug
                say("did not end in time, killing it", process=self.name, seconds=kill_after_s)
        # The process leads a group of its own; what it may have started goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _spawn(self, ready_fd: int) -> Process:
        # -P: a folder in the working directory must not stand in for a service of the same name.
        command = [
            *self._spec.prefix,
            sys.executable,
            "-P",
            "-m",
            self._spec.module,
            "--listen",
            self._listen,
            *self._spec.arguments,
            *self._metrics_port(),
        ]
        environment = {**self._environment, READY_FD: str(ready_fd), PARENT_PID: str(os.getpid())}
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(open_log(self._log_file)) if self._log_file else sys.stderr
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=(ready_fd,),
                # Ctrl-C at the terminal reaches the supervisor alone, which ends the children in order.
                start_new_session=True,
            )

    def _metrics_port(self) -> list[str]:
        """The flag; a process that was restarted gets the port that it had."""
        if not self._spec.metrics:
            return []
        return ["--metrics-port", self.metrics_address.rpartition(":")[2] or "0"]

    def _tail(self) -> str:
        """The end of the log, to be appended to a message."""
        if self._log_file is None:
            return ""
        lines = tail(self._log_file, LOG_TAIL_LINES)
        return "; the end of its log:\n  " + "\n  ".join(lines) if lines else ""


def how_it_ended(code: int | None) -> str:
    """An exit code in words. What the kernel ends for memory says nothing itself: its log just stops."""
    if code is None or code >= 0:
        return f"with code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if -code == signal.SIGKILL:
        return f"by {name}: by hand, or by the kernel because memory ran out (`dmesg` tells)"
    return f"by {name}"


async def _read_line(descriptor: int) -> bytes:
    """The line that a child writes to its pipe; empty if it ends without one. Closes the descriptor."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader(limit=_MAX_ANNOUNCEMENT_BYTES)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        return await stream.readline()
    finally:
        transport.close()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}

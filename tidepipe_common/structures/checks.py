"""Tries structures out beside this process: what is too expensive is killed there, and costs nothing here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import tidepipe_common
from tidepipe_common.errors import OverloadedError, UnavailableError
from tidepipe_common.structures.frames import receive_frame, send_frame
from tidepipe_common.structures.limits import MAX_BYTES, MAX_CPU_S, MAX_WALL_S
from tidepipe_common.types.structure import Structure

START_TIMEOUT_S = 60.0
"""Until the tokenizer is ready there: a second or two."""
TAKEN_S = 4.0
"""Until a structure is taken up there, which costs a fork. Who does not in that time hangs, or is stopped."""
_NO_TIME = "this machine has no time to check structures now; try again"


class StructureProcess:
    """A process that tries structures out for one model. Started when first needed; any thread may call.

    Several structures may be in trial at a time, each in a process of its own.
    """

    def __init__(
        self, read_tokenizer: Callable[[], str], vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """read_tokenizer: the content of tokenizer.json; ValueError or OSError if there is none."""
        self._read_tokenizer = read_tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._unusable = ""

    def problem(self, structure: Structure) -> str:
        """Why no output of the model can be held to it; empty if it can. Blocks, up to some seconds.

        OverloadedError if this machine had no time for it, UnavailableError if there can be no such process.
        """
        hangs = False
        for _ in range(2):
            running = self._started()
            if running is None:
                return self._unusable
            try:
                return running.ask(structure)
            except _GoneError as error:
                hangs = error.hangs
                with self._lock:
                    if self._running is running:
                        self._running = None
                    running.close()
        if hangs:
            raise OverloadedError(_NO_TIME)
        raise UnavailableError("structures cannot be checked now: the process for it ends at once")

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return None if self._running is None else self._running.pid

    def close(self) -> None:
        """End the process. It starts again if it is needed again."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.close()

    def _started(self) -> _Running | None:
        with self._lock:
            if self._running is None and not self._unusable:
                try:
                    text = self._read_tokenizer()
                except Exception as error:  # of a file that anyone may have written, and of libraries
                    self._unusable = f"not with this model: its tokenizer cannot be read: {error}"[:400]
                    return None
                self._running, self._unusable = _start(
                    {"tokenizer": text, "vocab_size": self._vocab_size, "eos_token_ids": self._eos_token_ids}
                )
            return self._running


class _GoneError(Exception):
    """The process is not there any more. hangs: it is, but does nothing."""

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__()
        self.hangs = hangs


class _Running:
    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.pid = process.pid
        self._control = control
        self.close = weakref.finalize(self, _end, process, control)

    def ask(self, structure: Structure) -> str:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                try:
                    socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
                except OSError as error:
                    raise _GoneError from error
            ours.settimeout(TAKEN_S)
            try:
                receive_frame(ours)
            except TimeoutError:
                raise _GoneError(hangs=True) from None
            except (EOFError, OSError):
                raise _GoneError from None
            ours.settimeout(MAX_WALL_S + 1.0)
            try:
                send_frame(ours, json.dumps(asdict(structure)).encode())
                return receive_frame(ours).decode()
            except TimeoutError:
                raise OverloadedError(_NO_TIME) from None
            except (EOFError, OSError):
                if self.gone:
                    raise _GoneError from None
                return (
                    f"the {structure.title} is too complex: to try it out takes more than {MAX_CPU_S:g} s or "
                    f"{MAX_BYTES >> 20} MB"
                )

    @property
    def gone(self) -> bool:
        """True if nobody is at the other end of the socket."""
        try:
            return not self._control.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _start(model: dict[str, object]) -> tuple[_Running | None, str]:
    """The process, or why there can be none for this model."""
    ours, theirs = socket.socketpair()
    package = Path(tidepipe_common.__file__).resolve().parent.parent
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidepipe_common.structures.process"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
    running = _Running(process, ours)
    try:
        ours.settimeout(START_TIMEOUT_S)
        send_frame(ours, json.dumps(model).encode())
        problem = receive_frame(ours).decode()
        ours.settimeout(None)
    except (EOFError, OSError) as error:
        running.close()
        raise UnavailableError(f"structures cannot be checked now: no process for it ({error!r})") from None
    if problem:
        running.close()
        return None, problem
    return running, ""


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    process.kill()
    process.wait()

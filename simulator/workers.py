"""Processes that all answer tasks of one kind, in the order in which they were asked, until a deadline."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from tidepipe_common.errors import TidePipeError

Task = TypeVar("Task")
Answer = TypeVar("Answer")

_END_S = 5.0


class TimeIsUpError(TidePipeError):
    """The deadline has passed; what was begun is not waited for."""


class WorkerFailedError(TidePipeError):
    """A process ended, or its function raised what nobody expects."""


@dataclass(slots=True)
class _Worker:
    """turn, place: of the task that it is at; turn -1 when it is idle."""

    process: BaseProcess
    pipe: Connection
    turn: int = -1
    place: int = 0


def left_s(deadline: float) -> float | None:
    """Seconds until a deadline by `time.monotonic`, None without one (0); TimeIsUpError behind it."""
    if not deadline:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeIsUpError("the time for the search is up")
    return left


class Workers(Generic[Task, Answer]):
    """Context manager over the processes; they end with it, whatever ends it.

    With one process there is no other one than this. Answers come in the order of the tasks, so that who
    stops reading has seen the same ones however many processes there are.
    """

    def __init__(self, function: Callable[[Task], Answer], processes: int, deadline: float = 0.0) -> None:
        """function: can be pickled. deadline: by `time.monotonic`; 0 for none."""
        self._function = function
        self._processes = processes
        self.deadline = deadline
        self._workers: list[_Worker] = []
        self._turn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._workers:
            one.process.terminate()
        for one in self._workers:
            one.process.join(_END_S)
            if one.process.is_alive():
                one.process.kill()
                one.process.join()
            one.pipe.close()
        self._workers.clear()

    def ordered(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        """Answer after answer. Whoever stops reading leaves what was begun to end by itself, unread.

        TimeIsUpError when the deadline passes; else what the function raised.
        """
        if self._processes == 1:
            for task in tasks:
                self.left_s()
                yield self._function(task)
            return
        self._turn += 1
        turn, begun, answers = self._turn, 0, dict[int, Answer]()
        for place in range(len(tasks)):
            while place not in answers:
                while begun < len(tasks) and (idle := self._idle(len(tasks) - begun)) is not None:
                    idle.turn, idle.place = turn, begun
                    self._send(idle, tasks[begun])
                    begun += 1
                for one in self._ready():
                    answer = self._receive(one)
                    if one.turn == turn:
                        answers[one.place] = self._read(answer)
                    one.turn = -1
            yield answers.pop(place)

    def left_s(self) -> float | None:
        """Until the deadline, None if there is none; TimeIsUpError behind it."""
        return left_s(self.deadline)

    def _idle(self, wanted: int) -> _Worker | None:
        """One that has nothing to do; a new one if there may be more of them."""
        for one in self._workers:
            if one.turn == -1:
                return one
        if wanted <= 0 or len(self._workers) >= self._processes:
            return None
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        # Ctrl-C is the parent's to decide on, and waits until it has told the process what to do.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        self._workers.append(_Worker(process, here))
        # Not as an argument: a start would wait for ever if the process ends before it has read a large one.
        self._send(self._workers[-1], self._function)
        return self._workers[-1]

    def _ready(self) -> list[_Worker]:
        busy = {one.pipe: one for one in self._workers if one.turn != -1}
        found = wait(list(busy), self.left_s())
        return [busy[pipe] for pipe in found if isinstance(pipe, Connection)]

    @staticmethod
    def _send(one: _Worker, task: object) -> None:
        try:
            one.pipe.send(task)
        except OSError:
            raise _ended(one) from None

    @staticmethod
    def _receive(one: _Worker) -> tuple[bool, Any]:
        try:
            answer: tuple[bool, Any] = one.pipe.recv()
        except (EOFError, OSError):
            raise _ended(one) from None
        return answer

    @staticmethod
    def _read(answer: tuple[bool, Any]) -> Any:
        fine, value = answer
        if fine:
            return value
        raise value if isinstance(value, TidePipeError) else WorkerFailedError(str(value))


def _ended(one: _Worker) -> WorkerFailedError:
    one.process.join(_END_S)
    return WorkerFailedError(
        f"a process of the search ended with code {one.process.exitcode} (-9: killed, perhaps for want of "
        "memory); give fewer --jobs"
    )


def _serve(pipe: Connection) -> None:
    """Is told the function first, then tasks. Ends with its parent."""
    with contextlib.suppress(EOFError, OSError):
        function: Callable[[Any], Any] = pipe.recv()
        while True:
            task = pipe.recv()
            try:
                pipe.send((True, function(task)))
            except TidePipeError as error:
                pipe.send((False, error))
            except OSError:
                raise
            except Exception:
                pipe.send((False, f"a process of the search failed: {traceback.format_exc()}"))

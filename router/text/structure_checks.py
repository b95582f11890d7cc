"""Which structures this model's outputs can be held to: tried out beside this process, and remembered."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from tidepipe_common.errors import InvalidRequestError, OverloadedError, UnavailableError
from tidepipe_common.structures.checks import StructureProcess
from tidepipe_common.types.structure import Structure

AT_A_TIME = 3
MOST_OF_ONE = 2
"""Trials of one owner at a time: the next one's first trial waits for nobody else's."""
MAX_WAITING = 32
MAX_WAITING_OF_ONE = 16
MAX_REMEMBERED = 1024
"""Of at most some 500 bytes each."""


class _Trial:
    """One structure. It may wait in several owners' queues; the first that comes to it runs it for all."""

    def __init__(self, key: bytes, structure: Structure, owner: str) -> None:
        self.key = key
        self.structure = structure
        self.owner = owner
        self.begun = False
        self.waiters = 0
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class StructureChecks:
    """Of one model. Trials of one structure are one trial; owners take turns, and none takes every place."""

    def __init__(
        self, read_tokenizer: Callable[[], str], vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.model = (vocab_size, eos_token_ids)
        self._process = StructureProcess(read_tokenizer, vocab_size, eos_token_ids)
        self._threads = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="structures")
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._trials: dict[bytes, _Trial] = {}
        self._waiting: OrderedDict[str, deque[_Trial]] = OrderedDict()
        self._running: Counter[str] = Counter()

    async def check(self, structure: Structure, owner: str = "") -> None:
        """InvalidRequestError if no output can be held to it, OverloadedError if too many wait."""
        key = sha256(
            f"{structure.kind} {structure.field} {structure.text}".encode("utf-8", "surrogatepass")
        ).digest()
        problem = self._known.get(key)
        if problem is None:
            trial = self._tried(key, structure, owner)
            trial.waiters += 1
            try:
                problem = await asyncio.shield(trial.done)
            finally:
                trial.waiters -= 1
        if problem:
            raise InvalidRequestError(f"{structure.field}: {problem}", structure.field)

    def close(self) -> None:
        """End the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._process.close()
        self._waiting.clear()
        for trial in self._trials.values():
            if not trial.done.done():
                trial.done.set_exception(UnavailableError("structures cannot be checked any more; try again"))
                trial.done.exception()  # perhaps nobody waits any more

    def _tried(self, key: bytes, structure: Structure, owner: str) -> _Trial:
        trial = self._trials.get(key)
        queue = self._waiting.get(owner, ())
        if trial is None:
            waiting = sum(not one.begun for one in self._trials.values())
            if waiting >= MAX_WAITING or len(queue) >= MAX_WAITING_OF_ONE:
                most = max(waiting, len(queue))
                raise OverloadedError(
                    f"{most} other structures (response_format, tools) wait to be checked; come again"
                )
            trial = self._trials[key] = _Trial(key, structure, owner)
        if not trial.begun and trial not in queue and len(queue) < MAX_WAITING_OF_ONE:
            self._waiting.setdefault(owner, deque()).append(trial)
            asyncio.get_running_loop().call_soon(self._begin)
        return trial

    def _begin(self) -> None:
        """As many as there are places for, one of each owner in turn."""
        while self._running.total() < AT_A_TIME:
            owner = next((name for name in self._waiting if self._running[name] < MOST_OF_ONE), None)
            if owner is None:
                return
            queue = self._waiting.pop(owner)
            trial = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind the others
            if not trial.waiters and self._trials.get(trial.key) is trial and not trial.begun:
                del self._trials[trial.key]  # whoever asked has gone
            elif not trial.begun and self._trials.get(trial.key) is trial:
                self._run(trial, owner)

    def _run(self, trial: _Trial, owner: str) -> None:
        trial.begun, trial.owner = True, owner
        self._running[owner] += 1
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, self._process.problem, trial.structure)
        running.add_done_callback(lambda ended: self._ended(trial, ended))

    def _ended(self, trial: _Trial, ended: asyncio.Future[str]) -> None:
        self._running[trial.owner] -= 1
        if not self._running[trial.owner]:
            del self._running[trial.owner]
        del self._trials[trial.key]
        error = None if ended.cancelled() else ended.exception()
        if trial.done.done():
            pass
        elif ended.cancelled():
            trial.done.cancel()
        elif error is not None:
            trial.done.set_exception(error)
            trial.done.exception()  # perhaps nobody waits any more
        else:
            trial.done.set_result(ended.result())
            self._known[trial.key] = ended.result()
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        self._begin()

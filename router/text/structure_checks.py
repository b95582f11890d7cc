"""Which structures this model's outputs can be held to: tried out beside this process, and remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from common.errors import InvalidRequestError, OverloadedError
from common.structure import Structure
from common.structures.checks import StructureProcess

AT_A_TIME = 3
MAX_WAITING = 32
MAX_REMEMBERED = 1024
"""Of at most some 500 bytes each."""


class StructureChecks:
    """Of one model. Trials of one structure are one trial, and their number at a time is bounded."""

    def __init__(
        self, read_tokenizer: Callable[[], str], vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.model = (vocab_size, eos_token_ids)
        self._process = StructureProcess(read_tokenizer, vocab_size, eos_token_ids)
        self._threads = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="structures")
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._trials: dict[bytes, asyncio.Future[str]] = {}

    async def check(self, structure: Structure) -> None:
        """InvalidRequestError if no output can be held to it, OverloadedError if too many wait."""
        key = sha256(f"{structure.kind} {structure.text}".encode("utf-8", "surrogatepass")).digest()
        problem = self._known.get(key)
        if problem is None:
            problem = await asyncio.shield(self._trials.get(key) or self._begin(key, structure))
        if problem:
            raise InvalidRequestError(f"response_format: {problem}", "response_format")

    def close(self) -> None:
        """End the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._process.close()

    def _begin(self, key: bytes, structure: Structure) -> asyncio.Future[str]:
        if len(self._trials) >= AT_A_TIME + MAX_WAITING:
            raise OverloadedError(
                f"{MAX_WAITING} other structures (response_format) wait to be checked; come again"
            )
        trial = asyncio.get_running_loop().run_in_executor(self._threads, self._process.problem, structure)
        self._trials[key] = trial
        trial.add_done_callback(lambda done: self._ended(key, done))
        return trial

    def _ended(self, key: bytes, trial: asyncio.Future[str]) -> None:
        del self._trials[key]
        if trial.cancelled() or trial.exception() is not None:
            return
        self._known[key] = trial.result()
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

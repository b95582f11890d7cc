"""The intake of a batch: its input file becomes lines, or is refused in words."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from typing import TypeAlias

from router.batches import deaths, files, lines
from router.batches.database import Database
from router.batches.records import BatchRecord
from router.batches.writer import durably
from tidepipe_common.aside import beside
from tidepipe_common.errors import NotFoundError, StorageError
from tidepipe_common.limits import MAX_REQUEST_BYTES
from tidepipe_common.openai.answers import BatchError
from tidepipe_common.openai.batch import BatchLineError, parse_line
from tidepipe_common.openai.failures import error_code

MAX_REQUESTS = 50_000
MAX_ERRORS = 10
_LINES_AT_A_TIME = 50
_OF_THE_FILE = {
    "invalid_json",
    "invalid_line",
    "invalid_custom_id",
    "unknown_field",
    "invalid_method",
    "invalid_url",
}
"""Errors for which OpenAI refuses the whole file. What is wrong in a body concerns that request alone."""


class LineSplitter:
    """Cuts a file that comes in pieces into numbered lines; blank ones count, but are left out."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._number = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Lines that are complete now, without their ends. A line that is too long comes cut."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._rest += part
            yield from self.flush()
        self._rest += rest[: MAX_REQUEST_BYTES + 1 - len(self._rest)]

    @property
    def waiting(self) -> int:
        """Bytes of a line that has not ended yet."""
        return len(self._rest)

    def flush(self) -> Iterator[tuple[int, bytes]]:
        """The last line."""
        self._number += 1
        line = bytes(self._rest[: MAX_REQUEST_BYTES + 1]).strip()
        self._rest.clear()
        if line:
            yield self._number, line


NewLine: TypeAlias = tuple[int, bytes, bytes]
"""Number, custom_id, and the line itself."""


class BatchIntake:
    """One input file, read from the database and, line by line, back into it."""

    def __init__(self, database: Database, batch: BatchRecord) -> None:
        self._database = database
        self._batch = batch
        self.total = 0
        self.errors: list[BatchError] = []

    async def run(self) -> None:
        """Take all lines in; `errors` says what is wrong, as the API shows it."""
        try:
            await self._read()
        except (NotFoundError, StorageError) as error:
            self._error(error_code(error), str(error), None)
        if not self.total and not self.errors:
            self._error("empty_file", "the input file has no requests", None)

    async def _read(self) -> None:
        run = self._database.run
        await durably(self._database, self._at, 0)
        await run(lines.forget_lines, self._batch.id)
        file = await run(files.get, self._batch.input_file_id)
        splitter = LineSplitter()
        place: int | None = 0
        while place is not None and not self._enough:
            data, place = await run(files.read, file, place)
            size = len(data) + splitter.waiting
            await self._add(await beside(size, functools.partial(self._good, splitter.feed(data))))
        await self._add(await beside(splitter.waiting, functools.partial(self._good, splitter.flush())))

    def _good(self, numbered: Iterator[tuple[int, bytes]]) -> list[NewLine]:
        """Those that can be run. Takes long where there is much to read."""
        good = []
        for number, line in numbered:
            if self._enough:
                break
            custom_id = self._check(number, line)
            if custom_id is not None:
                good.append((number, _key(custom_id), line))
        return good

    def _at(self, db: sqlite3.Connection, place: int) -> None:
        deaths.begin(db, self._batch.id, [deaths.INTAKE], place)

    def _add_lines(self, db: sqlite3.Connection, good: list[NewLine], place: int) -> int | None:
        self._at(db, place)
        return lines.add_lines(db, self._batch.id, good)

    async def _add(self, good: list[NewLine]) -> None:
        for begin in range(0, max(1, len(good)), _LINES_AT_A_TIME):
            some = good[begin : begin + _LINES_AT_A_TIME]
            known = await self._database.run(self._add_lines, some, self.total)
            if known is not None:
                text = f"line {known}: its custom_id is used by an earlier line"
                self._error("duplicate_custom_id", text, known, "custom_id")

    def _check(self, number: int, line: bytes) -> str | None:
        """The line's custom_id if it can be run, be it to an error of its own."""
        self.total += 1
        if self.total > MAX_REQUESTS:
            text = f"a batch may have {MAX_REQUESTS} requests; send several batches"
            self._error("too_many_requests", text, number)
            return None
        if len(line) > MAX_REQUEST_BYTES:
            text = f"line {number}: longer than {MAX_REQUEST_BYTES} bytes"
            self._error("line_too_long", text, number)
            return None
        parsed = parse_line(line, number, "")
        if isinstance(parsed, BatchLineError) and (parsed.custom_id is None or parsed.code in _OF_THE_FILE):
            self._error(parsed.code, parsed.message, number, parsed.param)
            return None
        if parsed.url != self._batch.endpoint:
            text = f"line {number}: url is {parsed.url}, the batch's endpoint {self._batch.endpoint}"
            self._error("mismatched_endpoint", text, number, "url")
            return None
        return parsed.custom_id

    def _error(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        self.errors.append({"code": code, "message": message, "line": line, "param": param})

    @property
    def _enough(self) -> bool:
        """True if the rest of the file does not matter any more."""
        return len(self.errors) >= MAX_ERRORS or self.total > MAX_REQUESTS


def _key(custom_id: str) -> bytes:
    return custom_id.encode()

"""/v1/files: what batches read and write."""

from __future__ import annotations

import contextlib
import errno
import secrets
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from router.api.http.body import BodyTooLargeError
from router.api.http.failures import guarded
from router.api.http.paging import file_list, page_of, parameter
from router.batches import files
from router.batches.database import Database
from router.batches.limits import expires_after
from router.batches.records import FileRecord, safe_name
from tidepipe_common.aside import beside
from tidepipe_common.errors import InvalidRequestError, NotFoundError, OverloadedError, StorageError
from tidepipe_common.numerals import count
from tidepipe_common.openai.answers import DeletedFile
from tidepipe_common.security.caller import current
from tidepipe_common.text.text import quoted

MAX_FILE_BYTES = 200 * 1024 * 1024
_FORM_OVERHEAD = 64 * 1024
MAX_UPLOADS = 16
"""At a time: each waits in the temporary folder until it is complete."""
MAX_UPLOADS_OF_ONE = MAX_UPLOADS // 2
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = {"file", "purpose", _ANCHOR, _SECONDS}
RECORD_BYTES = 256
"""What a list says of a file, about."""


class FileEndpoints:
    """Files come and go in pieces: they may be larger than what should be in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._uploads: Counter[str] = Counter()
        # Settled now: once it is full, Python would take another folder, unasked.
        self._spool = tempfile.gettempdir()

    def routes(self) -> list[Route]:
        """All paths."""
        one = "/v1/files/{file_id}"
        return [
            Route("/v1/files", guarded(self.upload), methods=["POST"]),
            Route("/v1/files", guarded(self.listing), methods=["GET"]),
            Route(one, guarded(self.show), methods=["GET"]),
            Route(one, guarded(self.delete), methods=["DELETE"]),
            Route(one + "/content", guarded(self.content), methods=["GET"]),
        ]

    async def upload(self, request: Request) -> Response:
        """Store a file; it exists once this answers."""
        owner = current().owner
        if self._uploads.total() >= MAX_UPLOADS:
            raise OverloadedError(f"{MAX_UPLOADS} files are coming in already; try again")
        if owner and self._uploads[owner] >= MAX_UPLOADS_OF_ONE:
            raise OverloadedError(f"{MAX_UPLOADS_OF_ONE} of your files are coming in already; try again")
        size = count(request.headers.get("content-length", "0"), 1 << 62) or 0
        self._uploads[owner] += 1
        try:
            await self._database.run(self._database.limits.check_room, max(0, size - _FORM_OVERHEAD), owner)
            return await self._upload(request)
        finally:
            self._uploads[owner] -= 1
            self._uploads += Counter()  # forgets who has none

    async def _upload(self, request: Request) -> Response:
        limited = Request(request.scope, _Limit(request, MAX_FILE_BYTES + _FORM_OVERHEAD).receive)
        try:
            async with limited.form(max_files=1, max_fields=8) as form:
                return JSONResponse((await self._store(form)).body())
        except HTTPException as error:  # Starlette's word for a form that is none
            raise InvalidRequestError(f"the form cannot be read: {error.detail}") from None
        except OSError as error:  # larger files wait in the temporary folder until they are complete
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageError(
                f"the router has no room for this file in {self._spool}; free space there, or set "
                "TMPDIR to a larger folder, and try again"
            ) from error

    async def _store(self, form: FormData) -> FileRecord:
        file, purpose = form.get("file"), form.get("purpose")
        if unknown := sorted(form.keys() - _FIELDS):
            name = unknown[0][:40]
            raise InvalidRequestError(
                f"unknown field {name!r}; a form has file, purpose and expires_after", name
            )
        names = [name for name, _ in form.multi_items()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidRequestError(f"{twice} stands twice in the form; send one", twice)
        if not isinstance(file, UploadFile):
            raise InvalidRequestError("file is required, as multipart/form-data", "file")
        if purpose != "batch":
            raise InvalidRequestError(f"purpose must be 'batch', got {quoted(purpose)}", "purpose")
        now = int(time.time())
        lifetime_s = expires_after(form.get(_ANCHOR), form.get(_SECONDS))
        record = FileRecord(
            id=f"file-{secrets.token_hex(12)}",
            created=now,
            bytes=file.size or 0,
            filename=safe_name(file.filename or ""),
            purpose="batch",
            expires=self._database.limits.expiry(now, lifetime_s),
            owner=current().owner,
        )
        run = self._database.run
        await run(self._begin, record)
        try:
            number = 0
            while data := await file.read(files.CHUNK_BYTES):
                await run(files.append, record.id, number, data)
                number += 1
            await run(files.complete, record.id, record.bytes)
        except BaseException:
            # On a full disk that may fail as well; then the next start removes what is here.
            with contextlib.suppress(StorageError):
                await run(files.drop, record.id)
            raise
        return record

    def _begin(self, db: sqlite3.Connection, record: FileRecord) -> None:
        self._database.limits.check_room(db, record.bytes, record.owner or "")
        files.begin(db, record)

    async def listing(self, request: Request) -> Response:
        """Pages, newest first unless asked otherwise."""
        page = page_of(request, most=10_000, default=10_000)
        purpose = parameter(request, "purpose")
        found = await self._database.run(
            files.listing, purpose, page.after, page.limit + 1, page.newest_first, current()
        )

        def write() -> JSONResponse:
            return JSONResponse(file_list([record.body() for record in found], page.limit))

        return await beside(len(found) * RECORD_BYTES, write)

    async def show(self, request: Request) -> Response:
        """One file's facts."""
        return JSONResponse((await self._find(request)).body())

    async def delete(self, request: Request) -> Response:
        """Remove one file."""
        file_id = request.path_params["file_id"]
        await self._database.free(files.delete, file_id, current())
        return JSONResponse(DeletedFile(id=file_id, object="file", deleted=True))

    async def content(self, request: Request) -> Response:
        """What is in it."""
        record = await self._find(request)
        headers = {"content-length": str(record.bytes)}
        return StreamingResponse(self._pieces(record), media_type="application/octet-stream", headers=headers)

    async def _find(self, request: Request) -> FileRecord:
        record = await self._database.run(files.get, request.path_params["file_id"], current())
        if record.expires is not None and record.expires <= time.time():
            raise NotFoundError(f"the file {record.id} has expired")
        return record

    async def _pieces(self, record: FileRecord) -> AsyncIterator[bytes]:
        place: int | None = 0
        while place is not None:
            data, place = await self._database.run(files.read, record, place)
            yield data


class _Limit:
    """Counts a body while it is received."""

    def __init__(self, request: Request, limit: int) -> None:
        self._receive = request.receive
        self._limit = limit
        self._size = 0

    async def receive(self) -> Message:
        """The next piece; BodyTooLargeError if it is one too many."""
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise BodyTooLargeError(MAX_FILE_BYTES)
        return message

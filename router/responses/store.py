"""SQL of responses: bounded in bytes and number, in all and per owner; who has most makes room."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from router.batches.quotas import Quotas
from tidepipe_common.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PreviousResponseError,
    StorageError,
)
from tidepipe_common.limits import MAX_PROMPT_BYTES, MAX_TURNS, text_bytes
from tidepipe_common.responses.answers import ResponseBody
from tidepipe_common.responses.items import Item
from tidepipe_common.responses.writer import CALLS
from tidepipe_common.security.caller import ANYBODY, Caller
from tidepipe_common.settings.defaults import (
    BACKGROUND_RESPONSE_BYTES,
    BACKGROUND_RESPONSES,
    FILES_LIFETIME_S,
    RESPONSES_BYTES,
    RESPONSES_COUNT,
)

LARGEST_SHARE = 2
"""One owner may have any limit divided by this: nobody fills everybody's."""
RETRY_MS = 10_000
ROW_BYTES = 1024
"""What a response takes beside its texts."""
EXPIRED_AT_A_TIME = 256
_COLUMNS = "id, owner, created, status, background, previous, head, output, items, request, starts"


@dataclass(frozen=True, slots=True)
class ResponseLimits:
    """What is kept. lifetime_s: of a response, in the background from its creation; 0: for ever.

    unfinished: of those in the background, unfinished_of_one: of one owner's; None: half. held_bytes: their
    prompts in memory. quotas: of each owner.
    """

    max_bytes: int = RESPONSES_BYTES
    max_count: int = RESPONSES_COUNT
    lifetime_s: int = FILES_LIFETIME_S
    unfinished: int = BACKGROUND_RESPONSES
    unfinished_of_one: int | None = None
    held_bytes: int = BACKGROUND_RESPONSE_BYTES
    quotas: Quotas = field(default_factory=Quotas)

    @property
    def share_of_unfinished(self) -> int:
        """Of one owner, in the background."""
        half = max(1, self.unfinished // LARGEST_SHARE)
        return half if self.unfinished_of_one is None else self.unfinished_of_one


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it is stored. head: its body without output, status apart. output, items: lists, as JSON.

    request: what is to be answered, see `runs`; None once it has been.
    """

    id: str
    owner: str
    created: int
    status: str
    background: bool
    previous: str | None
    head: str
    output: str
    items: str
    request: str | None = None
    starts: int = 0

    @property
    def size(self) -> int:
        """Bytes that it counts for."""
        return ROW_BYTES + sum(map(text_bytes, (self.head, self.output, self.items, self.request or "")))

    def body(self) -> ResponseBody:
        """As the API shows it."""
        shown = {**json.loads(self.head), "status": self.status, "output": json.loads(self.output)}
        return cast(ResponseBody, shown)

    def conversation(self) -> list[Item]:
        """Its input and output, but for a call that breaks off: that is none."""
        output: list[Item] = json.loads(self.output)
        broken = [item for item in output if item["type"] in CALLS and item["status"] != "completed"]
        return [*json.loads(self.items), *(item for item in output if item not in broken)]


def stored(
    body: ResponseBody, items: list[Item], owner: str, *, request: dict[str, Any] | None = None
) -> StoredResponse:
    """From the body of a response. items: its input, with their ids."""
    head = {name: value for name, value in body.items() if name != "output"}
    return StoredResponse(
        id=body["id"],
        owner=owner,
        created=body["created_at"],
        status=body["status"],
        background=body["background"],
        previous=body["previous_response_id"],
        head=_json(head),
        output=_json(body["output"]),
        items=_json(items),
        request=None if request is None else _json(request),
    )


def keep(db: sqlite3.Connection, one: StoredResponse, limits: ResponseLimits) -> None:
    """Store it, in place of one with its id. StorageError if there is no room that could be made."""
    db.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (one.id, one.owner))
    _make_room(db, one, limits)
    db.execute(
        f"INSERT INTO responses ({_COLUMNS}, used, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.id, one.owner, one.created, one.status, one.background, one.previous),
            *(one.head, one.output, one.items, one.request, one.starts, one.created, one.size),
        ),
    )


def begin(db: sqlite3.Connection, one: StoredResponse, limits: ResponseLimits) -> bool:
    """Store one that is to be answered. False if it is there already. OverloadedError if too many are."""
    if db.execute("SELECT 1 FROM responses WHERE id = ? AND owner = ?", (one.id, one.owner)).fetchone():
        return False
    count, mine = db.execute(
        "SELECT COUNT(*), COALESCE(SUM(owner = ?), 0) FROM responses WHERE request IS NOT NULL", (one.owner,)
    ).fetchone()
    most = limits.share_of_unfinished
    if one.owner and mine >= most:
        raise OverloadedError(
            f"{most} of your background responses are unfinished; wait for one to end", RETRY_MS
        )
    if count >= limits.unfinished:
        raise OverloadedError(
            f"{limits.unfinished} background responses are unfinished; wait for one to end", RETRY_MS
        )
    keep(db, one, limits)
    return True


def end(db: sqlite3.Connection, one: StoredResponse) -> None:
    """It has ended, as this says; nothing happens if it was deleted meanwhile, or had ended."""
    db.execute(
        "UPDATE responses SET status = ?, head = ?, output = ?, request = NULL, "
        "size = ? + LENGTH(CAST(items AS BLOB)) "
        "WHERE id = ? AND request IS NOT NULL",
        (one.status, one.head, one.output, one.size, one.id),
    )


def begun(db: sqlite3.Connection, response: str) -> None:
    """A router begins to answer it."""
    db.execute("UPDATE responses SET starts = starts + 1 WHERE id = ?", (response,))


def admitted(db: sqlite3.Connection, response: str) -> None:
    """It is being answered."""
    db.execute(
        "UPDATE responses SET status = 'in_progress' WHERE id = ? AND request IS NOT NULL", (response,)
    )


def stopped_in_order(db: sqlite3.Connection) -> None:
    """The router stops: that is no response's fault."""
    db.execute("UPDATE responses SET starts = 0 WHERE request IS NOT NULL")


def unfinished(db: sqlite3.Connection) -> list[StoredResponse]:
    """Those that are to be answered, oldest first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM responses WHERE request IS NOT NULL ORDER BY created")
    return [_of(row) for row in rows]


def get(db: sqlite3.Connection, response: str, caller: Caller = ANYBODY) -> StoredResponse:
    """NotFoundError if there is none that the caller may see."""
    one = _find(db, response, caller)
    if one is None:
        raise NotFoundError(f"there is no response {response[:100]}")
    return one


def delete(db: sqlite3.Connection, response: str, caller: Caller = ANYBODY) -> None:
    """NotFoundError if there is none that the caller may see."""
    get(db, response, caller)
    db.execute("DELETE FROM responses WHERE id = ?", (response,))


def chain(db: sqlite3.Connection, last: str, caller: Caller, now: int) -> list[StoredResponse]:
    """The responses up to one, the first first. All of them count as used.

    PreviousResponseError if one is not there, or has not been answered; InvalidRequestError: too many.
    """
    found: list[StoredResponse] = []
    size, wanted = 0, cast("str | None", last)
    while wanted is not None:
        one = _find(db, wanted, caller)
        if one is None:
            text = f"there is no response {wanted[:100]}"
            if found:
                text += f" any more, from which {found[-1].id} goes on; send the conversation as input"
            raise PreviousResponseError(text)
        if one.status not in ("completed", "incomplete"):
            raise PreviousResponseError(
                f"the response {one.id} is {one.status}; only one that is completed can be gone on from"
            )
        size += text_bytes(one.items) + text_bytes(one.output)
        found.append(one)
        if size > MAX_PROMPT_BYTES or len(found) > MAX_TURNS:
            raise InvalidRequestError(
                f"the responses before this one have more than {MAX_PROMPT_BYTES} bytes or {MAX_TURNS} turns "
                "together; begin a new conversation",
                "previous_response_id",
            )
        wanted = one.previous
    db.executemany("UPDATE responses SET used = ? WHERE id = ?", [(now, one.id) for one in found])
    return found[::-1]


def find_all(db: sqlite3.Connection, responses: Iterable[str], caller: Caller) -> list[StoredResponse]:
    """Those of them that the caller may see. InvalidRequestError: they are more than a request may bring."""
    found: list[StoredResponse] = []
    size = 0
    for response in responses:
        if (one := _find(db, response, caller)) is not None:
            size += text_bytes(one.items) + text_bytes(one.output)
            _check_brought(size)
            found.append(one)
    return found


def _check_brought(size: int) -> None:
    if size > MAX_PROMPT_BYTES:
        raise InvalidRequestError(
            f"what the references of the input name has more than {MAX_PROMPT_BYTES} bytes together; send "
            "the items themselves",
            "input",
        )


def referred(references: Iterable[str], others: Iterable[StoredResponse]) -> dict[str, Item]:
    """Items by their ids, as often named as `references` say. InvalidRequestError: too much together."""
    known = {item["id"]: item for one in others for item in one.conversation()}
    counts = Counter(name for name in references if name in known)
    _check_brought(sum(count * text_bytes(_json(known[name])) for name, count in counts.items()))
    return known


def any_expired(db: sqlite3.Connection, before: int) -> bool:
    """True if one that has ended was created before then."""
    found = db.execute("SELECT 1 FROM responses WHERE request IS NULL AND created < ? LIMIT 1", (before,))
    return found.fetchone() is not None


def drop_expired(db: sqlite3.Connection, before: int) -> int:
    """Remove some of them; how many."""
    return db.execute(
        "DELETE FROM responses WHERE id IN (SELECT id FROM responses WHERE request IS NULL AND created < ? "
        "LIMIT ?)",
        (before, EXPIRED_AT_A_TIME),
    ).rowcount


def _find(db: sqlite3.Connection, response: str, caller: Caller) -> StoredResponse | None:
    row = db.execute(
        f"SELECT {_COLUMNS} FROM responses WHERE id = ? AND (? OR owner = ?)",
        (response, caller.sees_all, caller.owner),
    ).fetchone()
    return None if row is None else _of(row)


def _of(row: tuple[Any, ...]) -> StoredResponse:
    name, owner, created, status, background, *rest = row
    return StoredResponse(name, owner, created, status, bool(background), *rest)


def _make_room(db: sqlite3.Connection, one: StoredResponse, limits: ResponseLimits) -> None:
    """Whoever has most loses what was not used for longest; whoever is over their share, their own."""
    share_bytes, share_count = limits.max_bytes // LARGEST_SHARE, limits.max_count // LARGEST_SHARE
    left = limits.quotas.left_for_responses(db, one.owner)
    if left.max_bytes is not None:
        share_bytes = min(share_bytes, left.max_bytes)
    if left.max_items is not None:
        share_count = min(share_count, left.max_items)
    if share_count < 1 or (one.size > share_bytes and left.max_bytes == share_bytes):
        limits.quotas.check(db, one.owner, one.size)  # its files take what its key may store
    if one.size > share_bytes:
        raise StorageError(f"a response of {one.size} bytes cannot be kept: {share_bytes} are the most")
    while True:
        count, size = db.execute(
            "SELECT COALESCE(SUM(count), 0), COALESCE(SUM(bytes), 0) FROM response_sums"
        ).fetchone()
        mine = db.execute("SELECT count, bytes FROM response_sums WHERE owner = ?", (one.owner,)).fetchone()
        my_count, my_size = mine or (0, 0)
        if one.owner and (my_count + 1 > share_count or my_size + one.size > share_bytes):
            crowds = [one.owner]
        elif count + 1 > limits.max_count or size + one.size > limits.max_bytes:
            order = "bytes" if size + one.size > limits.max_bytes else "count"
            crowds = [
                owner for (owner,) in db.execute(f"SELECT owner FROM response_sums ORDER BY {order} DESC")
            ]
        else:
            return
        for owner in crowds:
            if db.execute(
                "DELETE FROM responses WHERE id = (SELECT id FROM responses WHERE owner = ? "
                "AND request IS NULL ORDER BY used LIMIT 1)",
                (owner,),
            ).rowcount:
                break
        else:
            raise StorageError("no more responses can be kept: those that are, are still being answered")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

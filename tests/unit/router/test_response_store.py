"""Responses are bounded, and each is its owner's alone."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.batches.database import Database
from router.responses import store
from router.responses.schema import TABLES
from router.responses.store import ROW_BYTES, ResponseLimits, StoredResponse
from tidepipe_common.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PreviousResponseError,
    StorageError,
)
from tidepipe_common.limits import MAX_PROMPT_BYTES
from tidepipe_common.security.caller import Caller

LIMITS = ResponseLimits(max_bytes=16 * ROW_BYTES, max_count=10)
A, B = Caller("a"), Caller("b")


def response(name: str, owner: str, size: int = 0, **fields: Any) -> StoredResponse:
    made = StoredResponse(name, owner, 1, "completed", False, None, "{}", "[]", f'["{"x" * size}"]')
    return dataclasses.replace(made, **fields)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", ""]), st.integers(0, 3 * ROW_BYTES), st.booleans()), max_size=40
    )
)
def test_whatever_is_kept_fits_and_one_owner_never_has_more_than_half(
    wanted: list[tuple[str, int, bool]],
) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(TABLES)
    for number, (owner, size, running) in enumerate(wanted):
        one = response(f"r{number}", owner, size, request="{}" if running else None)
        before = db.execute("SELECT COUNT(*) FROM responses WHERE request IS NOT NULL").fetchone()[0]
        db.execute("BEGIN")
        try:
            store.keep(db, one, LIMITS)
            db.execute("COMMIT")
        except StorageError:
            db.execute("ROLLBACK")  # those that run are nobody's room
            running = False
        after = db.execute("SELECT COUNT(*) FROM responses WHERE request IS NOT NULL").fetchone()[0]
        assert after == before + running
        sums = {}
        for who, count, used in db.execute("SELECT owner, COUNT(*), SUM(size) FROM responses GROUP BY owner"):
            sums[who] = (count, used)
            assert not who or (count <= LIMITS.max_count // 2 and used <= LIMITS.max_bytes // 2)
        assert sum(count for count, _ in sums.values()) <= LIMITS.max_count
        assert sum(used for _, used in sums.values()) <= LIMITS.max_bytes
        kept = db.execute("SELECT owner, count, bytes FROM response_sums").fetchall()
        assert {who: (count, used) for who, count, used in kept} == sums


def test_so_many_may_be_under_way() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(TABLES)
    limits = ResponseLimits(unfinished=3, unfinished_of_one=1)
    for number, owner in enumerate(("a", "", "")):
        store.begin(db, response(f"r{number}", owner, request="{}"), limits)
    for owner, says in (("a", "1 of your background"), ("", "3 background")):
        with pytest.raises(OverloadedError, match=says):
            store.begin(db, response("more", owner, request="{}"), limits)
    assert (ResponseLimits(unfinished=5).share_of_unfinished, limits.share_of_unfinished) == (2, 1)


def test_references_bring_no_more_than_a_request_may() -> None:
    """However many responses they name, and however often one item."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(TABLES)
    large = json.dumps([{"type": "message", "id": "m", "content": "x" * (2 * MAX_PROMPT_BYTES // 5)}])
    for number in range(3):
        store.keep(db, response(f"r{number}", "a", items=large), ResponseLimits())
    assert len(store.find_all(db, ["r0", "r1", "none"], A)) == 2
    with pytest.raises(InvalidRequestError, match="send the items themselves"):
        store.find_all(db, ["r0", "r1", "r2"], A)
    one = store.find_all(db, ["r0"], A)
    assert store.referred(["m", "m", "none"], one).keys() == {"m"}
    with pytest.raises(InvalidRequestError, match="send the items themselves"):
        store.referred(["m"] * 3, one)


async def test_what_one_has_is_not_there_for_another(tmp_path: Path) -> None:
    database = Database(tmp_path)
    try:
        run = database.run
        await run(store.keep, response("r1", "a"), LIMITS)
        await run(store.keep, response("r2", "a", previous="r1"), LIMITS)
        for seek in (store.get, store.delete):
            with pytest.raises(NotFoundError):
                await run(cast(Any, seek), "r1", B)
        with pytest.raises(PreviousResponseError):
            await run(store.chain, "r2", B, 5)
        assert await run(store.find_all, ["r1", "r2"], B) == []
        assert [one.id for one in await run(store.chain, "r2", A, 5)] == ["r1", "r2"]
        await run(store.delete, "r1", A)
        with pytest.raises(PreviousResponseError, match="r1 any more, from which r2 goes on"):
            await run(store.chain, "r2", A, 5)
    finally:
        database.close()

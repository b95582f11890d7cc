"""What idempotency keys stand for, on disk: pieces that overlap, owners, other bodies, age and size."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.requests import keyed_store
from router.requests.keyed import CLAIM_S
from router.requests.keyed_store import KeyedDatabase, StoredKeys
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import sampling_pb2 as sp
from tidepipe_common.errors import KeyReusedError
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.sampling import FinishReason, SamplingParams


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[KeyedDatabase]:
    # A second one, as a successor has it.
    with (
        contextlib.closing(KeyedDatabase(tmp_path)) as one,
        contextlib.closing(KeyedDatabase(tmp_path)) as other,
    ):
        await other.run(lambda db: db.execute("SELECT 1").fetchone())
        yield one


def request(prompt: str = "p", temperature: float = 1.0) -> GenerationRequest:
    return GenerationRequest("", prompt, SamplingParams(temperature=temperature))


def piece(
    name: str, answer: int, offset: int, tokens: list[int], end: int = 0
) -> tuple[str, int, int, bytes]:
    message = pb.AnswerDelta(token_offset=offset, token_ids=tokens, finish_reason=end)  # type: ignore[arg-type]
    return name, answer, 2 * offset + (not tokens), message.SerializeToString()


async def test_a_key_stands_for_one_request_of_one_owner(database: KeyedDatabase) -> None:
    keys = StoredKeys(database, lambda: 1000.0)
    first = await keys.claim("alice", "k", request())
    again = await keys.claim("alice", "k", request())
    assert (again.request_id, again.seed) == (first.request_id, first.seed) and first.seed is not None
    assert again.request(request()).sampling.seed == first.seed
    with pytest.raises(KeyReusedError):
        again.request(request("other"))
    assert (await keys.claim("bob", "k", request("other"))).request_id != first.request_id
    assert (await keys.claim("alice", "greedy", request(temperature=0))).seed is None


async def test_pieces_of_two_routers_are_one_answer(database: KeyedDatabase) -> None:
    keys = StoredKeys(database, lambda: 1000.0)
    name = (await keys.claim("", "k", request())).request_id
    pieces = [
        piece(name, 1, 0, [9]),
        piece(name, 0, 0, [1, 2, 3]),
        piece(name, 0, 2, [3, 4, 5]),
        piece(name, 0, 3, [4]),
        piece(name, 0, 5, [], sp.FINISH_REASON_LENGTH),
        piece(name, 1, 7, [8], sp.FINISH_REASON_STOP),  # behind a gap
    ]
    await database.run(keyed_store._save, pieces, [])
    first, second = (await keys.claim("", "k", request())).given
    assert (list(first.token_ids), first.end and first.end.reason) == (
        [1, 2, 3, 4, 5],
        FinishReason.LENGTH,
    )
    assert (list(second.token_ids), second.end) == ([9], None)
    await database.run(keyed_store._save, [], [(name,)])
    assert (await keys.claim("", "k", request())).given == []


async def test_old_ones_and_too_large_ones_are_forgotten(
    database: KeyedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    keys = StoredKeys(database, lambda: now)
    names = {}
    another = (await keys.claim("another", "first of all", request())).request_id
    for number in range(6):
        now += 1
        names[number] = (await keys.claim("", str(number), request())).request_id
        await database.run(keyed_store._save, [piece(names[number], 0, 0, [1] * 1000)], [])
    monkeypatch.setattr(keyed_store, "MAX_STORED_BYTES", 3 * 1300)
    await database.run(keyed_store._forget_old, now)
    kept = {number: (await keys.claim("", str(number), request())).request_id for number in range(6)}
    assert [kept[number] == names[number] for number in range(6)] == [False] * 3 + [True] * 3
    assert (await keys.claim("another", "first of all", request())).request_id == another
    now += CLAIM_S + 1
    await database.run(keyed_store._forget_old, now)
    assert await database.run(lambda db: db.execute("SELECT COUNT(*) FROM pieces").fetchone()) == (0,)

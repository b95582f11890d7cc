"""What routers are told: nothing is lost, and news that may wait does not wake anybody."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.errors import InvalidRequestError, OverloadedError
from tidepipe_common.rpc import results
from tidepipe_common.rpc.results import MAX_UPDATE_TOKENS, ResultsHub
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, TokenLogprob

LONG_S = 3600.0
LETTERS = st.sampled_from("abcd")
ACTS = ["emit", "finish", "collect", "reposition", "move", "forget"]
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), LETTERS))


@dataclass(frozen=True)
class Ended:
    """An End."""

    sequence_id: str
    reason: FinishReason = FinishReason.LENGTH
    stop_token: int | None = None
    error: str = ""
    preemptions: int = 0


async def test_what_is_kept_is_bounded_and_acknowledged_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long answers with log-probabilities come in parts; ended ones go when their end is known, or for want
    of room, and then whoever has not heard of their end hears that they are lost."""
    monkeypatch.setattr(results, "MAX_REMEMBERED_BYTES", 2_000_000)
    hub = ResultsHub()
    top = PositionLogprobs(TokenLogprob(1, -0.5), tuple(TokenLogprob(i, -1.5) for i in range(20)))
    length = MAX_UPDATE_TOKENS + 10
    for number in range(5):
        name = str(number)
        hub.open(name, "r", (), 0.0)
        for _ in range(length):
            hub.emit((name,), (7,), (top,))
        hub.finish(Ended(name))
    lost = hub.mailbox("r").take_lost()
    assert lost == [str(number) for number in range(len(lost))] and len(lost) > 0
    assert sum(record.bytes for record in hub.records.values()) <= 2_000_000
    first, second = hub.collect("r"), hub.collect("r")
    assert [len(update.token_ids) for update in first + second] == (
        [MAX_UPDATE_TOKENS] * len(hub.records) + [10] * len(hub.records)
    )
    assert not any(update.end for update in first) and all(update.end for update in second)
    assert second[0].logprobs == (top,) * 10
    for name in list(hub.records):
        hub.acknowledge(name)
    assert not hub.records and hub._ended_bytes == 0
    hub.mailbox("r").unwatched_since = 0.0
    assert hub.close_mailboxes(100.0, 15.0) == ["r"] and not hub.mailboxes


@given(STEPS)
def test_everything_is_told_once_and_in_order(steps: list[tuple[str, str]]) -> None:
    """Sequences a, b may wait, c, d may not; c comes with output. After the end each has been told whole,
    to the router that has it then."""

    async def play() -> None:
        hub = ResultsHub()
        told = {name: [7] if name == "c" else [] for name in "abcd"}
        ended, holder = set(), dict.fromkeys("abcd", "r")
        for name in "abcd":
            hub.open(name, "r", (7,) if name == "c" else (), 0.0, LONG_S if name in "ab" else 0.0)

        def collect() -> None:
            for router in ("r", "q"):
                for update in hub.collect(router):
                    assert holder[update.sequence_id] == router
                    assert update.token_offset == len(told[update.sequence_id])
                    told[update.sequence_id].extend(update.token_ids)

        for number, (what, name) in enumerate(steps):
            if (record := hub.records.get(name)) is None:
                continue
            box = hub.mailbox(record.router_id)
            if what == "emit" and name not in ended:
                first = record.sent == record.given
                hub.emit((name,), (number,))
                assert box.news.is_set() or (name in "ab" and not first)
            elif what == "finish" and name not in ended:
                ended.add(name)
                hub.finish(Ended(name))
                assert box.news.is_set()
            elif what == "collect":
                collect()
            elif what == "reposition":  # a router that reconnects says where it stands
                here = [one for one in hub.records if holder[one] == record.router_id]
                hub.reposition(record.router_id, {one: len(told[one]) for one in here})
            elif what == "move":  # another router has it now
                holder[name] = "q" if record.router_id == "r" else "r"
                hub.reposition(holder[name], {name: len(told[name])})
            elif what == "forget":
                hub.forget(name)
        for name in set(hub.records) - ended:
            hub.finish(Ended(name))
        collect()
        assert {name: told[name] for name in hub.records} == {
            name: list(record.tokens) for name, record in hub.records.items()
        }

    asyncio.run(play())


async def test_what_may_wait_is_told_together_in_time() -> None:
    hub = ResultsHub()
    hub.open("seldom", "r", (), 0.0, LONG_S)
    hub.open("often", "r", (), 0.0, 0.01)
    hub.emit(("seldom", "often"), (1, 1))
    assert {update.sequence_id for update in hub.collect("r")} == {"seldom", "often"}
    hub.emit(("seldom", "often"), (2, 2))
    assert not hub.mailbox("r").news.is_set()
    async with asyncio.timeout(60):
        await hub.mailbox("r").news.wait()
    assert [(one.sequence_id, one.token_ids) for one in hub.collect("r")] == [
        ("seldom", (2,)),
        ("often", (2,)),
    ]


async def test_names_of_routers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever invents them fills no memory, and those that are known stay."""
    monkeypatch.setattr(results, "MAX_ROUTERS", 2)
    hub = ResultsHub()
    with pytest.raises(InvalidRequestError, match="router_id"):
        hub.note_ordinal("r" * 10_000, 1, 0.0)
    hub.note_ordinal("a", 1, 0.0)
    hub.note_ordinal("b", 1, 0.0)
    with pytest.raises(OverloadedError, match="2 routers"):
        hub.note_ordinal("c", 1, 0.0)
    hub.note_ordinal("a", 2, 1.0)
    assert hub.ordinal("a") == 2


async def test_many_ids_leave_others_their_turn() -> None:
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "another's")
    await results.in_turns(seen.append, [str(number) for number in range(results.TURN + 1)])
    assert seen[results.TURN] == "another's" and len(seen) == results.TURN + 2

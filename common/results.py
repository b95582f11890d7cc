"""What routers are told: tokens and ends of their sequences, coalesced, resumable, bounded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from common.sampling import FinishReason, PositionLogprobs

MAX_REMEMBERED = 8192
"""Ended sequences that are kept for a router that comes back."""


class NewTokens(Protocol):
    """New tokens as columns, one sequence and one token per row; a sequence may have several rows.

    logprobs: None for those that want none; empty if nobody does.
    """

    @property
    def sequence_ids(self) -> tuple[str, ...]: ...

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def logprobs(self) -> tuple[PositionLogprobs | None, ...]: ...


class End(Protocol):
    """How a sequence ended. stop_token: the token that ended it, if one did; not part of its output."""

    @property
    def sequence_id(self) -> str: ...
    @property
    def reason(self) -> FinishReason: ...
    @property
    def stop_token(self) -> int | None: ...
    @property
    def error(self) -> str: ...
    @property
    def preemptions(self) -> int: ...


@dataclass(slots=True)
class Record:
    """All output of one sequence; what was sent is a position in it. `given`: tokens it came with.

    gap_s: new tokens may be told this seldom, but for the first ones and the end.
    """

    sequence_id: str
    router_id: str
    given: int
    tokens: list[int]
    gap_s: float = 0.0
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    sent: int = 0
    end: End | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """News of one sequence."""

    sequence_id: str
    token_offset: int
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    end: End | None


class Mailbox:
    """What one router has still to hear. Bounded by the outputs themselves: only positions are queued."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.watcher = 0
        self.unwatched_since: float | None = None
        self._due: OrderedDict[str, None] = OrderedDict()
        self._resting: OrderedDict[str, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, sequence_id: str) -> None:
        """There is news of a sequence."""
        self._resting.pop(sequence_id, None)
        self._due[sequence_id] = None
        self.news.set()

    def tell_within(self, sequence_id: str, gap_s: float) -> None:
        """There is news that may wait. All such news go together, when the first of them must go."""
        if sequence_id in self._due:
            return
        self._resting[sequence_id] = None
        loop = asyncio.get_running_loop()
        at = loop.time() + gap_s
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._rested)

    def _rested(self) -> None:
        self._timer = None
        self._due.update(self._resting)
        self._resting.clear()
        self.news.set()

    def take(self) -> Iterable[str]:
        """Sequences with news to tell now."""
        self.news.clear()
        due, self._due = self._due, OrderedDict()
        return due

    def forget(self, sequence_id: str) -> None:
        """Nothing of this sequence will be told."""
        self._due.pop(sequence_id, None)
        self._resting.pop(sequence_id, None)


class ResultsHub:
    """Records of all sequences, and a mailbox per router."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.mailboxes: dict[str, Mailbox] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def open(
        self, sequence_id: str, router_id: str, output: tuple[int, ...], now: float, gap_s: float = 0.0
    ) -> None:
        """A sequence was taken. gap_s: see Record."""
        self.records[sequence_id] = Record(
            sequence_id, router_id, len(output), list(output), gap_s, sent=len(output)
        )
        if router_id not in self.mailboxes:
            self.mailbox(router_id).unwatched_since = now

    def mailbox(self, router_id: str) -> Mailbox:
        """The router's mailbox."""
        return self.mailboxes.setdefault(router_id, Mailbox())

    def emit(self, action: NewTokens) -> None:
        """New tokens."""
        for sequence_id, token in zip(action.sequence_ids, action.token_ids, strict=True):
            record = self.records[sequence_id]
            record.tokens.append(token)
            if record.gap_s and record.sent > record.given:
                self.mailbox(record.router_id).tell_within(sequence_id, record.gap_s)
            else:
                self._touch(record)
        for sequence_id, logprobs in zip(action.sequence_ids, action.logprobs, strict=False):
            if logprobs is not None:
                self.records[sequence_id].logprobs.append(logprobs)

    def finish(self, action: End) -> None:
        """A sequence ended; it is remembered for a while."""
        record = self.records[action.sequence_id]
        record.end = action
        self._touch(record)
        self._ended[action.sequence_id] = None
        while len(self._ended) > MAX_REMEMBERED:
            self.forget(self._ended.popitem(last=False)[0])

    def forget(self, sequence_id: str) -> None:
        """Drop a sequence for good."""
        record = self.records.pop(sequence_id, None)
        self._ended.pop(sequence_id, None)
        if record and record.router_id in self.mailboxes:
            self.mailboxes[record.router_id].forget(sequence_id)

    def _touch(self, record: Record) -> None:
        self.mailbox(record.router_id).tell(record.sequence_id)

    def reposition(self, router_id: str, positions: Mapping[str, int]) -> tuple[list[str], list[str]]:
        """A router says where it stands. Returns (lost, unwanted): ids that are not here, and ids of its
        sequences here that it does not know of."""
        lost = []
        for sequence_id, position in positions.items():
            record = self.records.get(sequence_id)
            # One that lacks tokens it claims to have belongs to another life of this controller.
            if record is None or not record.given <= position <= len(record.tokens):
                lost.append(sequence_id)
                continue
            if record.router_id != router_id:
                self.mailbox(record.router_id).forget(sequence_id)
                record.router_id = router_id
            record.sent = position
            if position < len(record.tokens) or record.end is not None:
                self._touch(record)
        unwanted = [
            record.sequence_id
            for record in self.records.values()
            if record.router_id == router_id and record.sequence_id not in positions
        ]
        return lost, unwanted

    def collect(self, router_id: str) -> list[Update]:
        """All that is new for a router; it counts as sent."""
        return [self._update(self.records[name]) for name in self.mailbox(router_id).take()]

    @staticmethod
    def _update(record: Record) -> Update:
        begin, record.sent = record.sent, len(record.tokens)
        logprobs: tuple[PositionLogprobs, ...] = ()
        if record.logprobs:
            logprobs = tuple(record.logprobs[begin - record.given :])
        return Update(record.sequence_id, begin, tuple(record.tokens[begin:]), logprobs, record.end)

    def abandoned(self, now: float, patience_s: float) -> Iterable[str]:
        """Sequences of routers that have not watched for `patience_s` seconds."""
        gone = {
            router_id
            for router_id, box in self.mailboxes.items()
            if box.unwatched_since is not None and now - box.unwatched_since > patience_s
        }
        return [record.sequence_id for record in self.records.values() if record.router_id in gone]

"""The hub of results for routers: tokens and ends of their sequences, coalesced, resumable, bounded.

`ResultsHub` keeps the output of each sequence in a `Record`, and per router a `Mailbox` of what is to tell;
`stream_results` answers ControllerService.WatchResults from them.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tidepipe.v1 import controller_pb2
from tidepipe_common.codec.controller import update_to_wire
from tidepipe_common.errors import OverloadedError
from tidepipe_common.limits import MAX_ADDRESS_CHARACTERS, PIECE_BYTES, check_characters
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.logprob_log import LogprobLog
from tidepipe_common.types.prompt_reading import PromptLog, PromptLogprobs
from tidepipe_common.types.results import End, SequenceUpdate
from tidepipe_common.types.sampling import PositionLogprobs

ABANDONED_AFTER_S = 15.0
"""Without its router a sequence goes on for so long: a restarted one takes it up again."""
MAX_REMEMBERED = 8192
"""Ended sequences that are kept for a router that comes back."""
MAX_REMEMBERED_BYTES = 64 * 1024 * 1024
"""What they take at most together; the oldest are forgotten early, and computed anew if still wanted."""
OBJECT_BYTES = 1024
"""What a sequence takes beside its tokens."""
MAX_UPDATE_TOKENS = 4096
"""Of one update, so that it stays far below a message's limit with all log-probabilities that there may be.
What is more comes in several."""
MAX_UPDATE_PROMPT = 64 * 1024
"""Log-probabilities of a prompt in one update: half a megabyte."""
MAX_ROUTERS = 1024
"""That are heard of within ABANDONED_AFTER_S."""
RETRY_AFTER_MS = 1000
TURN = 512
"""Ids that are worked through before others get their turn."""
UPDATES_PER_MESSAGE = 512
IDS_PER_MESSAGE = 1024


@dataclass(slots=True)
class Record:
    """All output of one sequence; what was sent is a position in it. `given`: tokens it came with.

    gap_s: new tokens may be told this seldom, but for the first ones and the end. cached: prompt tokens that
    were not computed for it.
    prompt: what is known of its prompt's log-probabilities; prompt_sent: positions of it that were sent.
    vector: of its prompt. announced: of its blocks while it is computed, until it is told.
    """

    sequence_id: str
    router_id: str
    given: int
    tokens: array[int]
    gap_s: float = 0.0
    logprobs: LogprobLog = field(default_factory=LogprobLog)
    sent: int = 0
    end: End | None = None
    cached: int = 0
    prompt: PromptLog | None = None
    prompt_sent: int = 0
    vector: bytes = b""
    announced: KvHandle | None = None

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        prompt = len(self.vector) + (0 if self.prompt is None else self.prompt.bytes)
        return OBJECT_BYTES + self.tokens.itemsize * len(self.tokens) + self.logprobs.bytes + prompt


class Mailbox:
    """What one router has still to hear. Bounded by the outputs themselves: only positions are queued."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.ordinal = 0
        """How many sequences the router has meant for us, as it says with each of its hand-overs."""
        self.watcher = 0
        self.unwatched_since: float | None = None
        self._due: OrderedDict[str, None] = OrderedDict()
        self._resting: OrderedDict[str, None] = OrderedDict()
        self._lost: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def late(self, now: float, patience_s: float) -> bool:
        """True if nobody has watched for so long."""
        return self.unwatched_since is not None and now - self.unwatched_since > patience_s

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

    def owes(self, sequence_id: str) -> bool:
        """True if there is news of a sequence to tell."""
        return sequence_id in self._due or sequence_id in self._resting

    def lose(self, sequence_id: str) -> None:
        """There will be no news of a sequence, which is not here any more."""
        self._lost.append(sequence_id)
        self.news.set()

    def take_lost(self) -> list[str]:
        """Sequences that are not here any more, to be told now."""
        lost, self._lost = self._lost, []
        return lost

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
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._ended_bytes = 0

    def open(
        self, sequence_id: str, router_id: str, output: tuple[int, ...], now: float, gap_s: float = 0.0
    ) -> None:
        """A sequence was taken. gap_s: see Record."""
        self.records[sequence_id] = Record(
            sequence_id, router_id, len(output), array("I", output), gap_s, sent=len(output)
        )
        if router_id not in self.mailboxes:
            self.mailbox(router_id).unwatched_since = now

    def note_ordinal(self, router_id: str, ordinal: int, now: float) -> None:
        """How many sequences the router has meant for us so far; forgotten with its mailbox."""
        known = router_id in self.mailboxes
        box = self.mailbox(router_id)
        box.ordinal = ordinal
        if not known:
            box.unwatched_since = now

    def ordinal(self, router_id: str) -> int:
        """That of the router's last hand-over; 0 before the first one."""
        box = self.mailboxes.get(router_id)
        return 0 if box is None else box.ordinal

    def mailbox(self, router_id: str) -> Mailbox:
        """The router's mailbox; a new one for who has none.

        InvalidRequestError for what names no router, OverloadedError if there are too many.
        """
        box = self.mailboxes.get(router_id)
        if box is None:
            check_characters("router_id", router_id, MAX_ADDRESS_CHARACTERS)
            if len(self.mailboxes) >= MAX_ROUTERS:
                raise OverloadedError(f"{MAX_ROUTERS} routers are served already", RETRY_AFTER_MS)
            box = self.mailboxes[router_id] = Mailbox()
        return box

    def emit(
        self,
        sequence_ids: Sequence[str],
        token_ids: Sequence[int],
        logprobs: Sequence[PositionLogprobs | None] = (),
    ) -> None:
        """New tokens of a step as columns, one sequence and one token per row.

        logprobs: None for those that want none; empty if nobody does.
        """
        router_id, box = "", None
        for sequence_id, token in zip(sequence_ids, token_ids, strict=True):
            record = self.records[sequence_id]
            record.tokens.append(token)
            # Mostly all are of one router.
            if box is None or record.router_id != router_id:
                router_id = record.router_id
                box = self.mailbox(router_id)
            if record.gap_s and record.sent > record.given:
                box.tell_within(sequence_id, record.gap_s)
            else:
                box.tell(sequence_id)
        for sequence_id, wanted in zip(sequence_ids, logprobs, strict=False):
            if wanted is not None:
                self.records[sequence_id].logprobs.append(wanted)

    def extend(
        self, sequence_id: str, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs]
    ) -> None:
        """New tokens of one sequence, at least one."""
        record = self.records[sequence_id]
        told = record.sent > record.given
        record.tokens.extend(token_ids)
        record.logprobs.extend(logprobs)
        if record.gap_s and told:
            self.mailbox(record.router_id).tell_within(sequence_id, record.gap_s)
        else:
            self._touch(record)

    def found(self, sequence_id: str, cached_tokens: int) -> None:
        """So many tokens of a sequence's prompt were not computed for it; told with its next news."""
        self.records[sequence_id].cached = cached_tokens

    def announce(self, sequence_id: str, handle: KvHandle) -> None:
        """The blocks of a sequence's prompt can be fetched while they are computed; told once."""
        record = self.records[sequence_id]
        record.announced = handle
        self._touch(record)

    def prompt_read(self, sequence_id: str, news: PromptLogprobs | None, vector: bytes = b"") -> None:
        """More was read off a sequence's prompt; told with its next news, before its tokens and its end."""
        record = self.records[sequence_id]
        if news is not None:
            record.prompt = record.prompt or PromptLog()
            record.prompt.merge(news)
        record.vector = vector or record.vector

    def finish(self, action: End) -> None:
        """A sequence ended; it is remembered for a while."""
        record = self.records[action.sequence_id]
        record.end = action
        self._touch(record)
        self._ended[action.sequence_id] = record.bytes
        self._ended_bytes += record.bytes
        while len(self._ended) > MAX_REMEMBERED or self._ended_bytes > MAX_REMEMBERED_BYTES:
            self._forget_untold(next(iter(self._ended)))

    def forget(self, sequence_id: str) -> None:
        """Drop a sequence for good."""
        record = self.records.pop(sequence_id, None)
        self._ended_bytes -= self._ended.pop(sequence_id, 0)
        if record and record.router_id in self.mailboxes:
            self.mailboxes[record.router_id].forget(sequence_id)

    def _forget_untold(self, sequence_id: str) -> None:
        """Drop one for want of room; a router that has not heard of its end hears that it is lost."""
        record = self.records[sequence_id]
        box = self.mailbox(record.router_id)
        if box.owes(sequence_id):
            box.lose(sequence_id)
        self.forget(sequence_id)

    def acknowledge(self, sequence_id: str) -> None:
        """A router has the end of a sequence: nobody will ask for it again. One that goes on stays."""
        if sequence_id in self._ended:
            self.forget(sequence_id)

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
            record.prompt_sent = 0
            if position < len(record.tokens) or record.end is not None:
                self._touch(record)
        unwanted = [
            record.sequence_id
            for record in self.records.values()
            if record.router_id == router_id and record.sequence_id not in positions
        ]
        return lost, unwanted

    def collect(self, router_id: str) -> list[SequenceUpdate]:
        """All that is new for a router; it counts as sent. Of much news only the first part: ask again."""
        box = self.mailbox(router_id)
        return [self._update(self.records[name], box) for name in box.take()]

    @staticmethod
    def _update(record: Record, box: Mailbox) -> SequenceUpdate:
        prompt = None
        if record.prompt is not None and record.prompt_sent < len(record.prompt):
            most = max(1, MAX_UPDATE_PROMPT // (1 + record.prompt.top))
            prompt = record.prompt.read(record.prompt_sent, record.prompt_sent + most)
            record.prompt_sent = min(len(record.prompt), record.prompt_sent + most)
            if record.prompt_sent < len(record.prompt):
                box.tell(record.sequence_id)
                return SequenceUpdate(
                    record.sequence_id, record.sent, (), cached_tokens=record.cached, prompt_logprobs=prompt
                )
        begin, end = record.sent, min(len(record.tokens), record.sent + MAX_UPDATE_TOKENS)
        record.sent = end
        whole = end == len(record.tokens)
        if not whole:
            box.tell(record.sequence_id)
        logprobs: tuple[PositionLogprobs, ...] = ()
        if len(record.logprobs):
            logprobs = record.logprobs.read(begin - record.given, end - record.given)
        tokens = tuple(record.tokens[begin:end])
        ended = record.end if whole else None
        announced, record.announced = record.announced, None
        return SequenceUpdate(
            record.sequence_id,
            begin,
            tokens,
            logprobs,
            ended,
            record.cached,
            prompt,
            record.vector if ended is not None else b"",
            announced,
        )

    def abandoned(self, now: float, patience_s: float) -> Iterable[str]:
        """Sequences of routers that have not watched for `patience_s` seconds."""
        gone = {router_id for router_id, box in self.mailboxes.items() if box.late(now, patience_s)}
        if not gone:
            return []
        return [record.sequence_id for record in self.records.values() if record.router_id in gone]

    def close_mailboxes(self, now: float, patience_s: float) -> list[str]:
        """Forget routers that have not watched for so long and have nothing here any more; their ids."""
        held = (
            {record.router_id for record in self.records.values()} if self._any_late(now, patience_s) else ()
        )
        closed = [
            router_id
            for router_id, box in self.mailboxes.items()
            if box.late(now, patience_s) and router_id not in held
        ]
        for router_id in closed:
            del self.mailboxes[router_id]
        return closed

    def _any_late(self, now: float, patience_s: float) -> bool:
        return any(box.late(now, patience_s) for box in self.mailboxes.values())


async def in_turns(work: Callable[[str], None], ids: Sequence[str]) -> None:
    """`work` on each of them; of many the event loop's other tasks go on in between."""
    for place, one in enumerate(ids, start=1):
        work(one)
        if not place % TURN:
            await asyncio.sleep(0)


async def stream_results(
    hub: ResultsHub,
    request: controller_pb2.WatchResultsRequest,
    incarnation: str,
    drop: Callable[[str], None],
) -> AsyncIterator[controller_pb2.WatchResultsResponse]:
    """Answer the router's positions, then tell all that is new, until a newer watcher of it comes.

    drop: ends a sequence that the router does not know of.
    """
    router_id = request.router_id
    box = hub.mailbox(router_id)
    box.watcher += 1
    mine = box.watcher
    box.unwatched_since = None
    box.news.set()  # an older watcher wakes up and leaves
    positions = {one.sequence_id: one.output_tokens for one in request.positions}
    lost, unwanted = hub.reposition(router_id, positions)
    for sequence_id in unwanted:
        drop(sequence_id)
    try:
        yield controller_pb2.WatchResultsResponse(incarnation=incarnation)
        for message in _losses(lost):
            yield message
        while True:
            await box.news.wait()
            if box.watcher != mine:
                return
            for message in (*_losses(box.take_lost()), *_messages(hub.collect(router_id))):
                yield message
    finally:
        _leave(box, mine)


def _leave(box: Mailbox, watcher: int) -> None:
    if box.watcher == watcher:
        box.unwatched_since = time.monotonic()


def _losses(lost: Sequence[str]) -> Iterator[controller_pb2.WatchResultsResponse]:
    for begin in range(0, len(lost), IDS_PER_MESSAGE):
        ids = lost[begin : begin + IDS_PER_MESSAGE]
        yield controller_pb2.WatchResultsResponse(lost_sequence_ids=ids)


def _messages(updates: Sequence[SequenceUpdate]) -> Iterator[controller_pb2.WatchResultsResponse]:
    """As few as may be, of PIECE_BYTES or one update each."""
    message, size = controller_pb2.WatchResultsResponse(), 0
    for update in updates:
        entry = update_to_wire(update)
        entry_size = entry.ByteSize()
        if size and (size + entry_size > PIECE_BYTES or len(message.updates) == UPDATES_PER_MESSAGE):
            yield message
            message, size = controller_pb2.WatchResultsResponse(), 0
        message.updates.append(entry)
        size += entry_size
    if size:
        yield message

"""The live driver: the pure scheduler, fed by real stages and routers, its actions carried out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from controller.runtime.activity_recorder import ActivityRecorder
from controller.runtime.body import Body
from controller.runtime.journal import Journal
from controller.runtime.predictor_client import LengthOracle
from controller.runtime.sequence_spans import SequenceSpans
from controller.runtime.stage_client import StageAbout, StageLostError
from controller.scheduler.actions import (
    Action,
    Announced,
    Dispatch,
    Emit,
    Fetch,
    Finish,
    GrantEnded,
    GrantGrown,
    HandedOver,
    PhaseSwitched,
    Preempted,
    PrefixFound,
    PrefixLent,
    PromptRead,
    Refused,
    TakenOver,
)
from controller.scheduler.events import (
    BlocksFetched,
    Event,
    HandOverAsked,
    LengthPredicted,
    NewSequence,
    PolicyChosen,
    PrefixAsked,
    PrefixCacheCleared,
    PrefixOffered,
    SequenceCancelled,
    SequencesArrived,
    StagesLost,
    StagesReady,
    StepDone,
    Tick,
)
from controller.scheduler.scheduler import Scheduler
from tidepipe_common.errors import InvalidRequestError, UnavailableError
from tidepipe_common.notifier import Notifier
from tidepipe_common.rpc.results import ABANDONED_AFTER_S, ResultsHub
from tidepipe_common.settings.defaults import LIVE_POLICIES
from tidepipe_common.types.kv_transfer import KvFetch, KvFetched, KvHandle, KvOrders, KvTransfer
from tidepipe_common.types.plan import SampledTokens, StepReport
from tidepipe_common.types.results import SequenceEnd
from tidepipe_common.types.sampling import FinishReason

TICK_S = 0.1
RECENT_MOVES = 32

Observer = Callable[[Event, Sequence[Action], float, float], None]
"""Is told an event, what followed from it, when, and how many seconds the decision took."""

log = structlog.get_logger()


class LiveInstance:
    """One instance at work. All methods run on the event loop; nothing in them waits for a stage."""

    def __init__(
        self,
        body: Body,
        make_scheduler: Callable[[StageAbout], Scheduler],
        predictor_address: str | None,
        on_serving: Callable[[bool], None],
        journal: Journal | None = None,
        observer: Observer = lambda event, actions, now, seconds: None,
        spans: SequenceSpans | None = None,
    ) -> None:
        """make_scheduler: called once, when the stages have said which model they serve.

        journal: gets every event that the scheduler hears. observer: after each.
        """
        self.body = body
        self.hub = ResultsHub()
        self.lengths = LengthOracle(predictor_address, self._predicted)
        self.changed = Notifier()
        self.activity = ActivityRecorder(len(body.stages))
        self.moves: deque[tuple[float, str]] = deque(maxlen=RECENT_MOVES)
        """When sequences went to other instances or came from them, and what there is to say of it."""
        self.draining = False
        self.serving = False
        self.detail = "stages are loading"
        self._make_scheduler = make_scheduler
        self._journal = journal
        self._observer = observer
        self._spans = spans or SequenceSpans()
        self._scheduler: Scheduler | None = None
        self._on_serving = on_serving
        if body.kv is not None:
            body.kv.on_fetched = self._fetched

    @property
    def ready(self) -> bool:
        """True once there is a scheduler."""
        return self._scheduler is not None

    @property
    def scheduler(self) -> Scheduler:
        """The core; UnavailableError while the stages have not been up yet."""
        if self._scheduler is None:
            raise UnavailableError(f"the instance is not ready: {self.detail}")
        return self._scheduler

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_epochs(), name="epochs")
            group.create_task(self.lengths.run(), name="lengths")
            group.create_task(self._tick(), name="ticks")

    async def _serve_epochs(self) -> None:
        while True:
            blocks = await self.body.bring_up()
            if self._scheduler is None:
                assert self.body.about is not None
                self._scheduler = self._make_scheduler(self.body.about)
            self.serving, self.detail = True, ""
            body = self.body
            way, node = (0.0, "") if body.kv is None else (body.kv.bytes_per_s, body.kv.node)
            ready = StagesReady(body.epoch, len(body.stages), blocks, body.replaced, body.offload, way, node)
            self._handle(ready)
            self.changed.notify_all()
            self._on_serving(True)
            try:
                await self.body.run_epoch(self._report)
            except StageLostError as lost:
                log.warning("stages lost", epoch=self.body.epoch, reason=str(lost))
                self.serving, self.detail = False, str(lost)
                self._on_serving(False)
                self._handle(StagesLost(str(lost), lost.failed_step, lost.open_steps))
                self.changed.notify_all()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._scheduler is None:
                continue
            if self.serving:
                self.body.look_for_hangs(self.now())
            self._handle(Tick())
            self.activity.sample(self.scheduler, self.now())
            for sequence_id in self.hub.abandoned(self.now(), ABANDONED_AFTER_S):
                self.drop(sequence_id)
            self.hub.close_mailboxes(self.now(), ABANDONED_AFTER_S)

    @staticmethod
    def now() -> float:
        """The core's clock, seconds."""
        return time.monotonic()

    # -- from the stages ----------------------------------------------------------------------------

    def _report(self, stage: int, report: StepReport) -> None:
        times, waits = self.activity.stage_done(stage, report, self.now())
        if stage != len(self.body.stages) - 1:
            return
        sampled = self._checked(stage, report)
        signals = sampled.signals
        names = self._names(report.step_id) if signals else {}
        self._handle(StepDone(report.step_id, sampled, times, waits))
        # Behind the tokens: nothing waits for what becomes of them.
        model = "" if self.body.about is None else self.body.about.fingerprint
        for one in signals:
            if (name := names.pop(one.key, None)) is not None:
                self.lengths.signal(name, model, one.values)

    def _checked(self, stage: int, report: StepReport) -> SampledTokens:
        """What the last stage sampled in a step; StageLostError if that cannot be: the epoch ends with it."""
        sampled, about = report.sampled, self.body.about
        assert about is not None, "it has been brought up"
        fault = (
            "does not say what was sampled"
            if sampled is None
            else self.scheduler.state.steps.misfit(report.step_id, sampled, about.shape.vocab_size)
        )
        if sampled is None or fault:
            where = f"stage {stage} at {self.body.stages[stage].address}"
            raise StageLostError(f"{where}: its report of step {report.step_id} {fault}", report.step_id)
        return sampled

    def _names(self, step_id: int) -> dict[int, str]:
        """Sequences that sample in a step, by their keys at the stages; none if it is not in flight."""
        steps = self.scheduler.state.steps
        if not steps.holds(step_id):
            return {}
        return {one.key: one.sequence_id for one in steps.open(step_id).sampled}

    def _predicted(self, sequence_id: str, p50: float, p90: float, at: int) -> None:
        if self._scheduler is not None:
            self._handle(LengthPredicted(sequence_id, p50, p90, at))

    # -- from the routers ---------------------------------------------------------------------------

    def submit(
        self, router_id: str, arrivals: Sequence[NewSequence], ordinal: int = 0
    ) -> Mapping[str, Refused]:
        """Take sequences; returns the refusals. Known ones count as taken.

        ordinal: how many the router has meant for this instance, these included.
        """
        scheduler = self.scheduler
        now = self.now()
        self.hub.note_ordinal(router_id, ordinal, now)
        fresh = []
        for one in arrivals:
            if one.sequence_id not in self.hub.records:
                self.hub.open(one.sequence_id, router_id, one.output, now, one.piece_gap_s)
                fresh.append(self._spans.begin(self._usable(one)))
        try:
            actions = self._handle(SequencesArrived(tuple(fresh)))
        except Exception:
            # Sent again they are new ones, and fail again, instead of being taken for known and waited for.
            for one in fresh:
                if one.sequence_id not in scheduler.sequences:
                    self.hub.forget(one.sequence_id)
            raise
        self.changed.notify_all()
        refused = {action.sequence_id: action for action in actions if isinstance(action, Refused)}
        for sequence_id in refused:
            self.hub.forget(sequence_id)
        for one in fresh:
            if sequence := scheduler.sequences.get(one.sequence_id):
                self.lengths.ask(sequence, one.features)
        return refused

    def _usable(self, one: NewSequence) -> NewSequence:
        """The same, without KV blocks that cannot be used here, and without a promise that cannot be kept."""
        if one.ahead and not (self.serving and self.hands_over):
            one = replace(one, ahead="")
        if one.kv is None or not (obstacle := self._obstacle(one.kv)):
            return one
        log.info("computed anew", sequence=one.sequence_id, reason=obstacle)
        return replace(one, kv=None)

    def _obstacle(self, handle: KvHandle) -> str:
        """Why its blocks cannot be fetched for use here; empty: they can."""
        port = self.body.kv
        if port is None:
            return "this instance takes no KV blocks over"
        return port.layout(self.body.about).obstacle(handle)

    @property
    def hands_over(self) -> bool:
        """Can its sequences go on elsewhere with their KV blocks?"""
        port = self.body.kv
        return port is not None and bool(port.layout(self.body.about).layout)

    def export(self, sequence_ids: Sequence[str], lease_s: float) -> None:
        """Have sequences go on elsewhere."""
        fetchable = self.serving and self.hands_over
        asked = tuple((name, secrets.token_hex(16) if fetchable else "") for name in sequence_ids)
        self._handle(HandOverAsked(asked, lease_s, "asked by its router"))
        self.changed.notify_all()

    def lend(
        self, loan_id: str, prompt: Sequence[int], prefix_root: str, keys: Sequence[bytes], lease_s: float
    ) -> KvHandle:
        """Keep what is here of a prompt's beginning for another instance to fetch; without a ticket: nothing
        is. keys: of its first blocks, as far as they were reckoned."""
        ticket = secrets.token_hex(16) if self.serving and self.hands_over else ""
        asked = PrefixAsked(loan_id, ticket, tuple(prompt), prefix_root, lease_s, keys)
        (lent,) = [action for action in self._handle(asked) if isinstance(action, PrefixLent)]
        self.changed.notify_all()
        port, body = self.body.kv, self.body
        if lent.grant is None or port is None:
            return KvHandle(reason=str(lent.reason))
        return port.handle(body.about, body.epoch, lent.grant, str(lent.reason))

    def fetch_ahead(
        self, handle: KvHandle, prompt: Sequence[int], prefix_root: str, keys: Sequence[bytes]
    ) -> None:
        """Have the blocks of a prompt fetched that another instance computes, if that is worth it.

        keys: as of `lend`.
        """
        if self.serving and not self._obstacle(handle):
            self._handle(PrefixOffered(handle, tuple(prompt), prefix_root, keys))
            self.changed.notify_all()

    def _fetched(self, fetched: KvFetched) -> None:
        self._handle(BlocksFetched(fetched))
        self.changed.notify_all()

    def choose_policy(self, name: str) -> str:
        """Schedule by another policy; returns the name of the one before. InvalidRequestError: unknown."""
        if name not in LIVE_POLICIES:
            raise InvalidRequestError(f"unknown policy {name!r}; known: {', '.join(LIVE_POLICIES)}", "policy")
        before = self.scheduler.policy.name
        self._handle(PolicyChosen(name))
        self.changed.notify_all()
        return before

    def clear_prefix_cache(self) -> int:
        """Let nobody find what was computed until now; returns the blocks that could be found."""
        blocks = self.scheduler.allocator.findable
        self._handle(PrefixCacheCleared())
        self.changed.notify_all()
        log.info("prefix cache cleared", blocks=blocks)
        return blocks

    def cancel(self, sequence_id: str) -> None:
        """End a sequence."""
        if self._scheduler is not None:
            self._handle(SequenceCancelled(sequence_id))

    def drop(self, sequence_id: str) -> None:
        """End a sequence that nobody will ask for again."""
        self.cancel(sequence_id)
        self.hub.forget(sequence_id)

    async def drain(self, patience_s: float) -> None:
        """Take nothing new; wait until all is done, nobody listens any more, or patience ends.

        Without its stages nothing gets done here: routers move what is left to other instances.
        """
        self.draining = True
        end = self.now() + patience_s
        while self.now() < end and self.serving and self._wanted:
            if all(box.unwatched_since is not None for box in self.hub.mailboxes.values()):
                return
            await asyncio.sleep(0.05)

    @property
    def transfer(self) -> KvTransfer | None:
        """Of KV blocks that come here; None: none do."""
        port = self.body.kv
        if self.scheduler.hand_over.rule.mode == "never":
            return None
        if port is None or not (token_bytes := port.token_bytes):
            return None
        transfers, now = self.scheduler.hand_over.transfers, self.now()
        return KvTransfer(token_bytes, transfers.far.way(now), transfers.near.way(now), port.node)

    @property
    def _wanted(self) -> bool:
        """Has it sequences, or blocks that another instance is about to fetch?"""
        return bool(self.scheduler.sequences or self.scheduler.hand_over.grants)

    # -- decisions carried out ----------------------------------------------------------------------

    def _handle(self, event: Event) -> Sequence[Action]:
        """What the scheduler decides, which is carried out; refusals are for who handed the sequence over."""
        now = self.now()
        if self._journal is not None:
            self._journal.note(event, now)
        actions = self.scheduler.on(event, now)
        seconds = self.now() - now
        if self._journal is not None:
            self._journal.did(actions)
        self.activity.note(event, actions, now, seconds)
        self._observer(event, actions, now, seconds)
        self._spans.note(event, actions)
        for action in actions:
            self._do(action)
        return actions

    def _do(self, action: Action) -> None:
        match action:
            case Dispatch(plan):
                self.body.send(plan)
            case Emit(sequence_ids, token_ids, logprobs):
                self.hub.emit(sequence_ids, token_ids, logprobs)
                self.lengths.heard(sequence_ids, token_ids)
            case Finish():
                self.hub.finish(action)
                self.changed.notify_all()
                self.lengths.ended(action)
            case Refused():
                pass
            case PrefixFound(sequence_id, cached_tokens):
                self.hub.found(sequence_id, cached_tokens)
            case PromptRead(sequence_id, piece):
                self.hub.prompt_read(sequence_id, piece.prompt_logprobs_read, piece.vector)
            case HandedOver() | PrefixLent() | GrantEnded() | Fetch() | TakenOver():
                self._carry(action)
            case Announced() | GrantGrown():
                self._announce(action)
            case PhaseSwitched():
                self.changed.notify_all()
                log.info(
                    "phase",
                    before=action.before.value,
                    after=action.after.value,
                    reason=str(action.reason),
                )
            case Preempted():
                log.info("preempted", sequence=action.sequence_id, reason=str(action.reason))

    def _announce(self, action: Announced | GrantGrown) -> None:
        """Blocks that can be fetched while their prompt is computed."""
        port, body = self.body.kv, self.body
        assert port is not None, "nothing is announced without"
        match action:
            case Announced(name, grant, reason):
                log.debug("announced", sequence=name, reason=str(reason))
                port.order(KvOrders(grants=(grant.order,)))
                self.hub.announce(name, port.handle(body.about, body.epoch, grant, str(reason)))
            case GrantGrown(order):
                port.order(KvOrders(grants=(order,)))

    def _carry(self, action: HandedOver | PrefixLent | GrantEnded | Fetch | TakenOver) -> None:
        """What concerns sequences that go to other instances, or come from them."""
        port, body = self.body.kv, self.body
        match action:
            case HandedOver(name, grant, reason):
                handle = KvHandle(reason=str(reason))
                if grant is not None and port is not None:
                    port.order(KvOrders(grants=(grant.order,)))
                    handle = port.handle(body.about, body.epoch, grant, str(reason))
                log.info("handed over", sequence=name, with_blocks=grant is not None, reason=str(reason))
                self._moved(f"{name} went on elsewhere: {reason}")
                self.hub.finish(SequenceEnd(name, FinishReason.CANCELLED, kv=handle))
                self.lengths.left(name)
            case PrefixLent(name, grant, reason):
                log.debug("lent", loan=name, with_blocks=grant is not None, reason=str(reason))
                if grant is not None and port is not None:
                    port.order(KvOrders(grants=(grant.order,)))
            case GrantEnded(ticket, why):
                log.debug("blocks that were handed over are free", reason=why)
                if port is not None:
                    port.order(KvOrders(revoked=(ticket,)))
            case Fetch():
                assert port is not None, "what it came with was looked at"
                log.info("fetching KV blocks", sequence=action.sequence_id, reason=str(action.reason))
                fetch = KvFetch(
                    action.fetch_id,
                    action.handle.ticket,
                    action.first,
                    action.blocks,
                    action.after_step,
                    action.timeout_s,
                    action.handle.stages,
                    action.ahead,
                )
                port.order(KvOrders(fetches=(fetch,)))
            case TakenOver(name, positions, reason):
                here = action.here
                log.info("taken over", sequence=name, positions=positions, here=here, reason=str(reason))
                what = "is computed anew"
                if positions or here:
                    rest = "" if positions else " that are here, and the rest is computed"
                    what = f"goes on behind {positions or here} positions{rest}"
                self._moved(f"{name} {what}: {reason}")

    def _moved(self, text: str) -> None:
        self.moves.append((self.now(), text))

"""An instance without a model: its tokens are known beforehand; it can be killed, cut off, or filled up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc
from tidepipe.v1 import router_pb2, router_pb2_grpc, sampling_pb2
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.types.plan import PROTOCOL_VERSION

EOS = 0
Verdict = pb.SubmitVerdict
Context = grpc.aio.ServicerContext[Any, Any]


def scripted_token(prompt: Sequence[int], seed: int, position: int) -> int:
    """Token that every instance gives at this position: a letter."""
    return 97 + ((sum(prompt) + seed % 997 + position + 1) * 2654435761 >> 9) % 26


def scripted_text(prompt: Sequence[int], count: int, seed: int = 0) -> str:
    """The first characters of an answer."""
    return "".join(chr(scripted_token(prompt, seed, position)) for position in range(count))


def scripted_vector(prompt: Sequence[int]) -> list[float]:
    """What every instance makes of a prompt."""
    return [float(sum(prompt)), float(len(prompt)), -1.0, 0.5]


@dataclass
class Held:
    """A sequence as the fake has it."""

    spec: pb.SequenceSpec
    router_id: str
    tokens: list[int]
    sent: int
    finish: int = sampling_pb2.FINISH_REASON_UNSPECIFIED
    cancelled: bool = False
    script: Sequence[int] | None = None
    kv: pb.KvHandle | None = None

    def step(self, eos_at: int | None) -> None:
        """Generate one token."""
        position = len(self.tokens)
        if not self.spec.sampling.max_tokens and self.spec.sampling.HasField("max_tokens"):
            self.finish = sampling_pb2.FINISH_REASON_LENGTH
            return
        if eos_at == position or (self.script is not None and position == len(self.script)):
            self.finish = sampling_pb2.FINISH_REASON_STOP
            return
        prompt, seed = self.spec.prompt_token_ids, self.spec.sampling.seed
        self.tokens.append(
            scripted_token(prompt, seed, position) if self.script is None else self.script[position]
        )
        if len(self.tokens) >= self.spec.sampling.max_tokens:
            self.finish = sampling_pb2.FINISH_REASON_LENGTH

    def update(self, offset: int) -> pb.SequenceUpdate:
        """Everything from `offset` on."""
        tokens = self.tokens[offset:]
        wanted = self.spec.sampling.HasField("logprobs")
        entry = pb.SequenceUpdate(
            sequence_id=self.spec.sequence_id,
            token_offset=offset,
            token_ids=tokens,
            finish_reason=self.finish,  # type: ignore[arg-type]
            logprobs=[
                sampling_pb2.PositionLogprobs(chosen=sampling_pb2.TokenLogprob(token_id=token, logprob=-1.0))
                for token in tokens
                if wanted
            ],
        )
        if self.kv is not None:
            entry.kv.CopyFrom(self.kv)
        if self.finish == sampling_pb2.FINISH_REASON_STOP:
            entry.stop_token_id = EOS
        if self.spec.sampling.HasField("prompt_logprobs"):
            entry.prompt_logprobs.CopyFrom(self.prompt_logprobs())
        if self.finish and self.spec.sampling.pooling:
            entry.vector = array("f", scripted_vector(self.spec.prompt_token_ids)).tobytes()
        return entry

    def prompt_logprobs(self) -> sampling_pb2.PromptLogprobs:
        """All of them, each time: as likely as their ids say."""
        own, top = self.spec.prompt_token_ids[1:], self.spec.sampling.prompt_logprobs
        ids = [token for one in own for token in (one, *range(50, 50 + top))]
        return sampling_pb2.PromptLogprobs(
            first_position=1,
            top=top,
            token_ids=array("I", ids).tobytes(),
            logprobs=array("f", [-one for one in ids]).tobytes(),
            ranks=array("I", [3] * len(own)).tobytes(),
        )


@dataclass
class FakeController(pb_grpc.ControllerServiceServicer):
    """One token per sequence every `step_s` seconds. `mangle` may spoil what watchers get.

    script: the tokens of the answer to a prompt; None: letters without end.
    room: sequences that it really takes. paused: computes nothing.
    stages_down: says so. silent: does not answer for its status.
    """

    instance_id: str = "i0"
    vocab_size: int = 256
    context_length: int = 1000
    fingerprint: str = "one"
    model: str = "fake"
    names: Sequence[str] = ()
    ttft_ms: float = 0
    max_sequences: int = 64
    room: int = 64
    step_s: float = 0.002
    eos_at: int | None = None
    draining: bool = False
    lacks: tuple[str, ...] = ()
    adapters: dict[str, str] = field(default_factory=dict)
    tool_parser: str = ""
    hands_over: bool = False
    mangle: Callable[[list[pb.SequenceUpdate]], list[pb.SequenceUpdate]] = lambda updates: updates
    script: Callable[[Sequence[int]], Sequence[int] | None] = lambda prompt: None
    held: dict[str, Held] = field(default_factory=dict)
    submitted: list[pb.SequenceSpec] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    batches: int = 0
    ordinals: dict[str, int] = field(default_factory=dict)
    policy: str = "auto"
    paused: bool = False
    stages_down: bool = False
    silent: bool = False
    incarnation: str = ""
    address: str = "127.0.0.1:0"

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._watchers: dict[str, int] = {}
        self._rpc: RpcServer | None = None
        self._stepping: asyncio.Task[None] | None = None
        self._stepped = asyncio.Event()

    async def start(self) -> None:
        """Begin a new life at the same address."""
        self.held, self.ordinals = {}, {}
        self.incarnation = f"{self.instance_id}-life-{next(self._numbers)}"
        self._rpc = RpcServer(self.address)
        pb_grpc.add_ControllerServiceServicer_to_server(self, self._rpc.server)
        self.address = await self._rpc.start([pb.DESCRIPTOR.services_by_name["ControllerService"]])
        self._stepping = asyncio.create_task(self._step())

    async def kill(self) -> None:
        """As kill -9: connections break, state is gone."""
        if self._rpc is None or self._stepping is None:
            return
        self._stepping.cancel()
        await asyncio.wait([self._stepping])
        await self._rpc.stop(0)
        self._rpc = None

    async def restart(self) -> None:
        """Die, and come back."""
        await self.kill()
        await self.start()

    async def register(self, router: str, lease_ms: int = 60_000) -> None:
        """Announce itself to a router."""
        handle = router_pb2.InstanceHandle(
            instance_id=self.instance_id, controller_address=self.address, incarnation=self.incarnation
        )
        async with open_channel(router) as channel:
            await router_pb2_grpc.RouterServiceStub(channel).RegisterInstance(
                router_pb2.RegisterInstanceRequest(handle=handle, lease_ms=lease_ms), timeout=5
            )

    def running(self) -> list[Held]:
        """Sequences that it is at work on."""
        return [held for held in self.held.values() if not held.finish]

    def end_watches(self) -> None:
        """End all streams of results."""
        for router_id in self._watchers:
            self._watchers[router_id] += 1

    async def _step(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            if not self.paused:
                for held in self.running():
                    held.step(self.eos_at)
            stepped, self._stepped = self._stepped, asyncio.Event()
            stepped.set()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        return pb.DescribeResponse(
            instance_id=self.instance_id,
            incarnation=self.incarnation,
            model=self.model,
            served_names=self.names,
            ttft_ms=self.ttft_ms,
            model_fingerprint=self.fingerprint,
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            eos_token_ids=[EOS],
            protocol_version=PROTOCOL_VERSION,
            max_sequences=self.max_sequences,
            lacks=self.lacks,
            adapters=[pb.Adapter(name=name, fingerprint=one) for name, one in self.adapters.items()],
            tool_parser=self.tool_parser,
            hands_over=self.hands_over,
        )

    async def SubmitSequences(  # noqa: N802
        self, request: pb.SubmitSequencesRequest, context: Context
    ) -> pb.SubmitSequencesResponse:
        self.batches += 1
        self.ordinals[request.router_id] = request.ordinal
        return pb.SubmitSequencesResponse(
            verdicts=[self._take(request.router_id, spec) for spec in request.sequences]
        )

    def _take(self, router_id: str, spec: pb.SequenceSpec) -> pb.SubmitVerdict:
        outcome = Verdict.OUTCOME_ACCEPTED
        if spec.sequence_id in self.held:
            pass
        elif self.draining:
            outcome = Verdict.OUTCOME_DRAINING
        elif len(self.running()) >= self.room:
            outcome = Verdict.OUTCOME_QUEUE_FULL
        else:
            self.submitted.append(spec)
            output = list(spec.output_token_ids)
            script = self.script(spec.prompt_token_ids)
            self.held[spec.sequence_id] = Held(spec, router_id, output, sent=len(output), script=script)
        return Verdict(sequence_id=spec.sequence_id, outcome=outcome, reason="fake")

    async def CancelSequences(  # noqa: N802
        self, request: pb.CancelSequencesRequest, context: Context
    ) -> pb.CancelSequencesResponse:
        for name in request.sequence_ids:
            self.cancelled.append(name)
            if name in self.held:
                self.held[name].finish = sampling_pb2.FINISH_REASON_CANCELLED
        return pb.CancelSequencesResponse()

    async def ExportSequences(  # noqa: N802
        self, request: pb.ExportSequencesRequest, context: Context
    ) -> pb.ExportSequencesResponse:
        if not self.hands_over:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "it cannot")
        for name in request.sequence_ids:
            held = self.held.get(name)
            if held is not None and not held.finish:
                held.finish = sampling_pb2.FINISH_REASON_CANCELLED
                computed = len(held.spec.prompt_token_ids) + len(held.tokens) - 1
                ticket = name.encode()[-16:].rjust(16)
                held.kv = pb.KvHandle(ticket=ticket, computed_tokens=computed, reason="asked")
        return pb.ExportSequencesResponse()

    async def WatchResults(  # noqa: N802
        self, request: pb.WatchResultsRequest, context: Context
    ) -> AsyncIterator[pb.WatchResultsResponse]:
        mine = self._watchers[request.router_id] = self._watchers.get(request.router_id, 0) + 1
        known = {position.sequence_id: position.output_tokens for position in request.positions}
        lost = [name for name in known if name not in self.held]
        for name, held in self.held.items():
            if name in known:
                held.sent = known[name]
        # As the real one: an end is reported again to a watcher that comes back.
        told: set[str] = set()
        yield pb.WatchResultsResponse(incarnation=self.incarnation, lost_sequence_ids=lost)
        while self._watchers[request.router_id] == mine:
            updates = []
            for name, held in self.held.items():
                if held.router_id == request.router_id and name not in told:
                    if held.sent < len(held.tokens) or held.finish:
                        updates.append(held.update(held.sent))
                        held.sent = len(held.tokens)
                    if held.finish:
                        told.add(name)
            if mangled := self.mangle(updates):
                yield pb.WatchResultsResponse(updates=mangled)
            await self._stepped.wait()

    async def WatchStatus(  # noqa: N802
        self, request: pb.WatchStatusRequest, context: Context
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        rpc = self._rpc
        while self._rpc is rpc:
            yield pb.WatchStatusResponse(report=self.report(request.router_id))
            await asyncio.sleep(0.02)

    def report(self, router_id: str) -> pb.InstanceReport:
        """As a router hears it; decoding is ahead of its pace, and memory is ample."""
        running = self.running()
        tokens = sum(len(held.spec.prompt_token_ids) + len(held.tokens) for held in running)
        return pb.InstanceReport(
            incarnation=self.incarnation,
            serving=not (self.draining or self.stages_down),
            stages_down=self.stages_down,
            accepted=self.ordinals.get(router_id, 0),
            phase=pb.PHASE_DECODE if running else pb.PHASE_UNSPECIFIED,
            sequences=len(running),
            tokens=tokens,
            kv_tokens_total=100_000,
            kv_tokens_free=100_000 - tokens,
            kv_tokens_peak=tokens,
            slack=pb.Slack(count=len(running), mean_s=9, low_s=9, low_latest_s=9),
            costs=pb.StepCosts(stages=1, step_tokens=256, linear_tokens=[1, 256], linear_s=[0.001, 0.01]),
            policy=self.policy,
            kv_transfer=pb.KvTransfer(token_bytes=1, bytes_per_s=1e9) if self.hands_over else None,
        )

    async def SetPolicy(  # noqa: N802
        self, request: pb.SetPolicyRequest, context: Context
    ) -> pb.SetPolicyResponse:
        before, self.policy = self.policy, request.policy
        return pb.SetPolicyResponse(before=before)

    async def GetInstanceStatus(  # noqa: N802
        self, request: pb.GetInstanceStatusRequest, context: Context
    ) -> pb.GetInstanceStatusResponse:
        while self.silent:  # noqa: ASYNC110 - set by tests
            await asyncio.sleep(0.05)
        status = pb.InstanceStatus(instance_id=self.instance_id, serving=True, running=len(self.running()))
        return pb.GetInstanceStatusResponse(status=status)


@contextlib.asynccontextmanager
async def fake_controller(**settings: Any) -> AsyncIterator[FakeController]:
    """A started one, dead at the end."""
    controller = FakeController(**settings)
    await controller.start()
    try:
        yield controller
    finally:
        await controller.kill()

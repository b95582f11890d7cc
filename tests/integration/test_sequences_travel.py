"""Sequences that move between instances of different layer splits, in the midst of decoding: real stages over
real gRPC, in this process; and the same with what can go wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from controller.runtime.live import LiveInstance
from controller.runtime.pipeline import Pipeline, PipelineConfig
from controller.scheduler.actions import Action, TakenOver
from controller.scheduler.events import Event, NewSequence
from controller.scheduler.hand_over import HandOver
from controller.scheduler.policies.catalog import make_setup
from controller.scheduler.scheduler import Scheduler
from stage_worker.api.servicer import StageServicer
from stage_worker.block_source import BlockSources
from stage_worker.executors.torch_backend import TorchBackend
from tests.tiny_adapters import make_adapter
from tests.tiny_models import make_tiny_model, random_prompts
from tests.tiny_tokenizer import make_tokenizer
from tidepipe.v1 import stage_pb2, stage_pb2_grpc
from tidepipe_common.latency.transfer import TransferCost, TransferCosts
from tidepipe_common.prefix import root_key
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.adapters import AdapterPlace
from tidepipe_common.types.kv_transfer import KvHandle, KvWanted
from tidepipe_common.types.results import SequenceEnd
from tidepipe_common.types.sampling import FinishReason, SamplingParams
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.token_mix import TokenMix

pytestmark = pytest.mark.timeout(120)

SEQUENCES = 100
LENGTH = 150
ANSWERS = range(90, 94)
"""These are answers to the same prompt, as of a request with n = 4."""


class Site:
    """An instance without a router. verdicts: what became of blocks that sequences came with."""

    def __init__(self, name: str, live: LiveInstance) -> None:
        self.name = name
        self.live = live
        self.verdicts: list[TakenOver] = []

    def note(self, event: Event, actions: Sequence[Action], now: float, seconds: float) -> None:
        self.verdicts += [action for action in actions if isinstance(action, TakenOver)]

    def tokens(self, name: str) -> tuple[int, ...]:
        return tuple(self.live.hub.records[name].tokens)

    async def until(self, names: Sequence[str], length: int) -> None:
        """Return when each of them has so many tokens, or has ended."""
        async with asyncio.timeout(60):
            for name in names:
                record = self.live.hub.records[name]
                while record.end is None and len(record.tokens) < length:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)

    async def hand_over(self, names: Sequence[str]) -> dict[str, KvHandle]:
        self.live.export(names, 30.0)
        await self.until(names, 1 << 30)
        handles = {}
        for name in names:
            end = self.live.hub.records[name].end
            if isinstance(end, SequenceEnd) and end.kv is not None:
                handles[name] = end.kv
        return handles


@asynccontextmanager
async def instance(model: Path, stages: int) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        addresses = []
        for _ in range(stages):
            adapters = [AdapterPlace("poet", model.parent / "poet")]
            backend = TorchBackend(str(model), device="cpu", dtype="float32", threads=1, adapters=adapters)
            servicer, server = StageServicer(backend), RpcServer("127.0.0.1:0")
            stage_pb2_grpc.add_StageServiceServicer_to_server(servicer, server.server)
            addresses.append(await server.start([stage_pb2.DESCRIPTOR.services_by_name["StageService"]]))
            stack.push_async_callback(server.stop, 0)
            stack.push_async_callback(servicer.close)
        body = Pipeline(PipelineConfig(tuple(addresses), 16, 3000, 512, TokenMix()), f"of {stages}")
        stack.push_async_callback(body.close)

        def make(about: object) -> Scheduler:
            setup = make_setup("td-pipe", {})
            assert body.about is not None
            shape = body.about.shape
            config = setup.config(
                shape.context_length, (257,), block_size=16, microbatches=0, max_sequences=0
            )
            return Scheduler(config, setup.policy, hand_over=HandOver(None, TransferCosts(TransferCost(1e9))))

        serving = asyncio.Event()
        site: Site
        live = LiveInstance(
            body, make, None, lambda up: serving.set(), observer=lambda *told: site.note(*told)
        )
        site = Site(f"of {stages}", live)
        live.hub.mailbox("r")  # of a router that is always there, or its sequences would be ended
        running = asyncio.create_task(live.run())
        stack.callback(running.cancel)
        await asyncio.wait_for(serving.wait(), 60)
        yield site


def sequences(prefix: str, adapter: str = "") -> dict[str, NewSequence]:
    """Greedy ones, ones at random with a seed, with penalties, with log-probabilities, held to a structure;
    some begin alike, some have the adapter, and some are several answers to one prompt."""
    ways = (
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.8, seed=7),
        SamplingParams(temperature=0, frequency_penalty=0.7, repetition_penalty=1.2),
        SamplingParams(temperature=0, logprobs=2),
        SamplingParams(temperature=0, structure=Structure("regex", "[a-z ]{400}")),
    )
    prompts = random_prompts([5 + number * 7 % 90 for number in range(SEQUENCES)], seed=3)
    common = random_prompts([40], seed=9)[0]
    made = {}
    for number, prompt in enumerate(prompts):
        way = ways[number % len(ways)]
        way = replace(way, max_tokens=LENGTH + number % 7, ignore_eos=way.structure is None)
        whole = (*common, *prompt) if number % 5 == 0 else tuple(prompt)
        if number in ANSWERS:
            whole, way = tuple(prompts[ANSWERS[0]]), replace(way, temperature=0.8, seed=100 + number)
        own = adapter if number % 7 == 3 else ""
        made[f"{prefix}{number}"] = NewSequence(
            f"{prefix}{number}", whole, way, prefix_root=root_key(own or "all").hex(), adapter=own
        )
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    base = make_tiny_model("llama", folder / "model", num_hidden_layers=6)
    make_tokenizer(base)
    make_adapter(base, folder / "poet")
    return base


async def test_a_hundred_go_on_elsewhere_as_if_nothing_had_been(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one stage to two, and from there to three; then what may go wrong with the blocks of others."""
    async with instance(model, 1) as one, instance(model, 2) as two, instance(model, 3) as three:
        assert one.live.body.about is not None
        adapter = one.live.body.about.adapters[0].fingerprint
        expected = sequences("u", adapter)
        one.live.submit("r", list(expected.values()))
        await one.until(list(expected), 1 << 30)
        undisturbed = {name[1:]: one.tokens(name) for name in expected}
        one.live.clear_prefix_cache()

        fresh = sequences("m", adapter)
        begun = replace(fresh["m0"], sequence_id="before", sampling=SamplingParams(max_tokens=1))
        three.live.submit("r", [begun])
        one.live.submit("r", list(fresh.values()))
        await one.until(list(fresh), 15)
        # However busy the machine is: what comes late would be computed instead.
        monkeypatch.setattr("controller.scheduler.fetch_rule.LEAST_TIMEOUT_S", 60.0)
        for source, target, length in ((one, two, 35), (two, three, 1 << 30)):
            handles = await source.hand_over(list(fresh))
            assert len(handles) == SEQUENCES
            assert all(handle.ticket for handle in handles.values())
            moved = [
                replace(spec, output=source.tokens(name), kv=handles[name]) for name, spec in fresh.items()
            ]
            lengths = [len(one.output) for one in moved]
            assert min(lengths) > 0 and max(lengths) < LENGTH, "in the midst of it"
            target.live.submit("r", moved)
            await target.until(list(fresh), length)
            for name in fresh:
                source.live.cancel(name)
            assert not source.live.scheduler.hand_over.grants
            assert [verdict.reason.text for verdict in target.verdicts] == ["fetched"] * SEQUENCES
        monkeypatch.undo()
        assert {name[1:]: three.tokens(name) for name in fresh} == undisturbed
        stats = three.live.scheduler.hand_over.stats
        common = [one for one in range(0, SEQUENCES, 5) if one not in ANSWERS and one % 7 != 3]
        assert stats.found_blocks >= 2 * len(common), "what is there by its content is not sent"
        assert all(site.live.scheduler.allocator.used == 0 for site in (one, two, three))

        await what_was_revoked_or_is_of_another_layout_is_not_handed_out(one, two)
        await beginnings_are_borrowed(one, two, three)
        await blocks_go_ahead(one, two, three)


async def beginnings_are_borrowed(one: Site, two: Site, three: Site) -> None:
    """By two stages from one that has computed them, and from three that are at it: found as if they had
    been computed here, and the same tokens follow."""
    prompt, own = random_prompts([300, 20], seed=5)
    greedy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    root = root_key("who").hex()
    turn = NewSequence("turn", tuple(prompt), greedy, prefix_root=root)
    again = replace(turn, prompt=(*prompt, *own))
    for site in (one, two, three):
        site.live.clear_prefix_cache()
    one.live.submit("r", [turn])
    await one.until(["turn"], 1 << 30)
    for other in (root_key("else").hex(), ""):
        assert not one.live.lend("none", again.prompt, other, (), 9.0).ticket
    three.live.submit("r", [replace(turn, sequence_id="early")])
    for lender, name in ((one, "done"), (three, "early")):
        handle = lender.live.lend(f"loan-{name}", again.prompt, root, (), 9.0)
        assert handle.computed == 288
        two.live.clear_prefix_cache()
        two.live.submit("r", [replace(again, sequence_id=f"b-{name}", kv=handle)])
        await two.until([f"b-{name}"], 1 << 30)
        assert two.verdicts[-1].reason.text == "fetched"
        assert two.live.hub.records[f"b-{name}"].cached == 288
        lender.live.cancel(f"loan-{name}")
        assert not lender.live.scheduler.hand_over.grants
    two.live.clear_prefix_cache()
    two.live.submit("r", [replace(again, sequence_id="alone")])
    await two.until(["alone"], 1 << 30)
    assert two.live.hub.records["alone"].cached == 0
    assert two.tokens("b-done") == two.tokens("b-early") == two.tokens("alone")


async def blocks_go_ahead(one: Site, two: Site, three: Site) -> None:
    """From three stages and from one to two while prompts are computed, in several steps; what is left then
    goes with the sequences, and the tokens are those that follow where nothing moves."""
    prompts = random_prompts([470, 333, 257], seed=11)
    greedy = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    root = root_key("who").hex()
    stats = two.live.scheduler.hand_over.loans.stats
    for number, (giver, prompt) in enumerate(zip((three, one, three), prompts, strict=True)):
        for site in (one, two, three):
            site.live.clear_prefix_cache()
        name, whole = f"ahead{number}", (len(prompt) - 1) // 16
        spec = NewSequence(name, tuple(prompt), greedy, prefix_root=root, ahead=f"{number:032x}")
        giver.live.submit("r", [spec])
        async with asyncio.timeout(20):
            while (handle := giver.live.hub.records[name].announced) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert handle.computed == 16 * whole
        two.live.fetch_ahead(handle, prompt, root, ())
        await giver.until([name], 1)
        moved = (await giver.hand_over([name]))[name]
        two.live.submit("r", [replace(spec, output=giver.tokens(name), kv=moved, ahead="")])
        await two.until([name], 1 << 30)
        verdict = two.verdicts[-1].reason
        assert (verdict.text, verdict.numbers["found"], stats.ahead) == ("fetched", whole, number + 1)
        giver.live.cancel(name)
        assert not giver.live.scheduler.hand_over.grants
        one.live.submit("r", [replace(spec, sequence_id=f"still{number}", ahead="")])
        await one.until([f"still{number}"], 1 << 30)
        assert one.tokens(f"still{number}") == two.tokens(name)


async def what_was_revoked_or_is_of_another_layout_is_not_handed_out(one: Site, two: Site) -> None:
    spec = replace(
        sequences("w")["w0"], sampling=SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    )
    one.live.submit("r", [spec])
    await one.until([spec.sequence_id], 200)
    handle = (await one.hand_over([spec.sequence_id]))[spec.sequence_id]
    (stage,) = handle.stages
    blocks = -(-handle.computed // handle.block_size)
    sources = BlockSources(1 << 24)

    async def fetch(wanted: KvWanted) -> int:
        return sum([piece.count async for piece in sources.stream(stage.address, wanted, 10.0)])

    good = KvWanted(stage.epoch, handle.ticket, 0, 6, 0, blocks, handle.layout)
    assert await fetch(good) == 6 * blocks
    for wrong, words in (
        (replace(good, ticket="00" * 16), "grant"),
        (replace(good, layout="another"), "laid out"),
        (replace(good, epoch=stage.epoch + 1), "not the present one"),
        (replace(good, count=blocks + 1), "not within"),
        (replace(good, layer_end=7), "not all among"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=words):
            await fetch(wrong)
    one.live.cancel(spec.sequence_id)
    async with asyncio.timeout(10):
        while True:
            try:
                await fetch(good)
            except grpc.aio.AioRpcError as error:
                assert "grant" in str(error.details())
                break
    await sources.close()

    # Who comes with a ticket that is worth nothing is computed anew, and ends as it would have.
    output = one.tokens(spec.sequence_id)
    two.live.submit("r", [replace(spec, output=output, kv=handle)])
    await two.until([spec.sequence_id], 1 << 30)
    record = two.live.hub.records[spec.sequence_id]
    assert record.end is not None and record.end.reason is FinishReason.LENGTH
    assert "did not come" in two.verdicts[-1].reason.text
    fresh = replace(spec, sequence_id="again")
    two.live.submit("r", [fresh])
    await two.until(["again"], 1 << 30)
    assert two.tokens("again") == two.tokens(spec.sequence_id)

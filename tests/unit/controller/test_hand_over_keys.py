"""Long prompts that are handed over: their keys are reckoned beside the loop, and nothing overtakes them."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controller.api import sequences, servicer
from controller.runtime.live import LiveInstance
from controller.scheduler.actions import Refused
from controller.scheduler.events import NewSequence
from controller.scheduler.scheduler import new_sequence
from controller.scheduler.state import SchedulerConfig
from tidepipe.v1 import controller_pb2 as pb
from tidepipe_common.lengths.prompt import DENSE, VERSION
from tidepipe_common.prefix import INLINE_TOKENS, block_keys, root_key
from tidepipe_common.types.adapter import Adapter
from tidepipe_common.types.sampling import SamplingParams

ROOT = root_key("somebody")
POET, OTHER = "1" * 32, "2" * 32


class Instance:
    """Notes in which order it is told what."""

    def __init__(self, *, reuse: bool = True) -> None:
        config = SchedulerConfig(1 << 20, frozenset(), block_size=16, prefix_caching=reuse)
        self.scheduler = SimpleNamespace(config=config)
        shape = SimpleNamespace(vocab_size=1 << 17)
        about = SimpleNamespace(adapters=[Adapter("poet", POET)], shape=shape)
        self.body = SimpleNamespace(check=lambda sampling: None, about=about)
        self.hub = SimpleNamespace(acknowledge=lambda name: None)
        self.draining = False
        self.told: list[str] = []
        self.arrivals: list[NewSequence] = []

    def now(self) -> float:
        return 0.0

    def submit(self, router: str, arrivals: Sequence[NewSequence], ordinal: int) -> Mapping[str, Refused]:
        self.arrivals += arrivals
        self.told += [one.sequence_id for one in arrivals]
        return {}

    def cancel(self, sequence_id: str) -> None:
        self.told.append(f"not {sequence_id}")


def serving(instance: Instance) -> servicer.ControllerServicer:
    settings = cast(Any, SimpleNamespace(instance_id="i"))
    return servicer.ControllerServicer(cast(LiveInstance, instance), settings, "1", lambda: cast(Any, None))


def hand_over(name: str, tokens: int) -> pb.SubmitSequencesRequest:
    spec = pb.SequenceSpec(sequence_id=name, prompt_token_ids=range(tokens), prefix_root=ROOT)
    spec.output_token_ids.extend([7] * 20)
    spec.sampling.temperature = 0.0
    return pb.SubmitSequencesRequest(router_id="r", sequences=[spec])


async def test_they_are_what_the_core_would_reckon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread if they are many; those of a short prompt, or without reuse, by nobody."""
    threads = []

    def noted(*given: Any) -> list[bytes]:
        threads.append(threading.current_thread())
        return block_keys(*given)

    monkeypatch.setattr(sequences, "block_keys", noted)
    for instance in (Instance(), Instance(reuse=False)):
        for tokens in (INLINE_TOKENS, 100):
            await serving(instance).SubmitSequences(hand_over("a", tokens), cast(Any, None))
    assert [thread is not threading.main_thread() for thread in threads] == [True]
    arrival = NewSequence(
        "a", tuple(range(INLINE_TOKENS)), SamplingParams(), (7,) * 20, prefix_root=ROOT.hex()
    )
    plain = new_sequence(arrival, 1 << 20, frozenset(), 0.0)
    instance = Instance()
    await serving(instance).SubmitSequences(hand_over("a", INLINE_TOKENS), cast(Any, None))
    given = new_sequence(instance.arrivals[0], 1 << 20, frozenset(), 0.0)
    assert given.keys == plain.keys_until(plain.length, 16) != []
    assert new_sequence(instance.arrivals[0], 1 << 20, frozenset(), 0.0, reuse=False).keys == []


async def test_who_is_cancelled_meanwhile_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that cancels comes while the keys are reckoned, and is told after what it cancels."""
    reckoned = threading.Event()
    monkeypatch.setattr(sequences, "block_keys", lambda *given: [b"k"] if reckoned.wait(10) else [])
    instance = Instance()
    serves = serving(instance)
    handed = asyncio.create_task(serves.SubmitSequences(hand_over("a", 10_000), cast(Any, None)))
    await asyncio.sleep(0)
    cancel = pb.CancelSequencesRequest(sequence_ids=["a"])
    cancelled = asyncio.create_task(serves.CancelSequences(cancel, cast(Any, None)))
    await asyncio.sleep(0.01)
    assert instance.told == []
    reckoned.set()
    await asyncio.gather(handed, cancelled)
    assert instance.told == ["a", "not a"]


@pytest.mark.parametrize("tokens", [100, INLINE_TOKENS])
async def test_an_adapter_s_blocks_are_nobody_else_s(tokens: int) -> None:
    """Whatever the router says of the root; and who has no such adapter takes no sequence of it."""
    instance = Instance()
    keys: list[set[bytes]] = []
    for adapter in ("", POET):
        request = hand_over(f"a{adapter}", tokens)
        request.sequences[0].adapter = adapter
        await serving(instance).SubmitSequences(request, cast(Any, None))
        sequence = new_sequence(instance.arrivals[-1], 1 << 20, frozenset(), 0.0)
        assert sequence.adapter == adapter
        keys.append({*sequence.keys_until(sequence.length, 16)})
    assert len(keys[0]) == len(keys[1]) and not keys[0] & keys[1]
    for adapter in (OTHER, "poet"):
        request = hand_over("b", tokens)
        request.sequences[0].adapter = adapter
        (verdict,) = (await serving(instance).SubmitSequences(request, cast(Any, None))).verdicts
        assert verdict.outcome is pb.SubmitVerdict.OUTCOME_INVALID and "adapter" in verdict.reason
    assert len(instance.arrivals) == 2


async def test_numbers_of_a_prompt_that_cannot_be_fail_alone() -> None:
    """The predictor would refuse them together with everybody else's."""
    instance, wrong = Instance(), hand_over("wrong", 100)
    wrong.sequences[0].prompt_features.version = VERSION
    wrong.sequences[0].prompt_features.dense.extend([math.nan] * len(DENSE))
    wrong.sequences.extend(hand_over("good", 100).sequences)
    reply = await serving(instance).SubmitSequences(wrong, cast(Any, None))
    assert instance.told == ["good"] and "must be finite" in reply.verdicts[0].reason

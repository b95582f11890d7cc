"""A request that cannot be computed fails alone, whatever runs beside it; its neighbours see a pause."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.scheduler.events import NewSequence, SequenceCancelled, SequencesArrived, StepDone
from controller.scheduler.inquest import MOST_ALONE, WAYS
from tests.unit.controller.policy_cases import CASES
from tests.unit.controller.test_scheduler import World, expected_output
from tidepipe_common.types.plan import RowError, SampledTokens, StepPlan
from tidepipe_common.types.sampling import FinishReason, SamplingParams

CULPRIT = 1000
"""Prompts that begin with a token from here on cannot be computed."""


def keys_at_fault(world: World, plan: StepPlan, place: int, *, decode_only: bool) -> list[int]:
    """Culprits whose `place` is computed in this step; decode_only: in a row of one token from there on."""
    found = []
    for row in plan.rows:
        first = world.fake.first_token(row.key) if row.first_position else row.token_ids[0]
        if first < CULPRIT:
            continue
        end = row.first_position + row.count
        hit = row.count == 1 and row.first_position >= place if decode_only else end > place
        if hit:
            found.append(row.key)
    return found


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=40, deadline=None)
@example(
    requests=[(48, 4), (47, 1), (1, 1), (1, 1)],
    culprits={0},
    place=0,
    dies=True,
    decode_only=True,
    spare=0,
    seed=0,
)
@example(  # Met at the beginning of its prompt and at its end, in turns.
    requests=[(55, 34), (53, 2), (8, 19), (55, 34), (5, 29)],
    culprits={0},
    place=0,
    dies=True,
    decode_only=True,
    spare=0,
    seed=22,
)
@given(
    requests=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 40)), min_size=1, max_size=40),
    culprits=st.sets(st.integers(0, 39), min_size=1, max_size=2),
    place=st.integers(0, 60),
    dies=st.booleans(),
    decode_only=st.booleans(),
    spare=st.integers(0, 200),
    seed=st.integers(0, 2**16),
)
def test_only_culprits_end_with_an_error(
    case: str,
    requests: list[tuple[int, int]],
    culprits: set[int],
    place: int,
    dies: bool,
    decode_only: bool,
    spare: int,
    seed: int,
) -> None:
    """Steps that fail, or kill a stage, wherever a culprit gets to `place`: it ends with an error, and all
    others with the tokens that they have alone, after a bounded number of epochs."""
    world = World(2, -(-150 // 8) + spare, 8, 0, case)
    chance = random.Random(seed)
    prompts = {
        f"s{i}": (CULPRIT + i if i in culprits else 1, *(chance.randint(1, 99) for _ in range(length - 1)))
        for i, (length, _) in enumerate(requests)
    }
    limits = {f"s{i}": limit for i, (_, limit) in enumerate(requests)}
    arrivals = [NewSequence(name, prompts[name], SamplingParams(max_tokens=limits[name])) for name in prompts]
    world.handle(SequencesArrived(tuple(arrivals[: len(arrivals) // 2])))
    world.handle(SequencesArrived(tuple(arrivals[len(arrivals) // 2 :])))
    losses = 0
    while world.fake.queue:
        if keys_at_fault(world, world.fake.queue[0], place, decode_only=decode_only):
            losses += 1
            failed = None if dies else world.fake.queue[0].step_id
            world.lose_stages("out of order", failed, died=dies)
        else:
            world.handle(world.fake.execute())

    at_fault = len([name for name in prompts if prompts[name][0] >= CULPRIT])
    divisions = math.ceil(math.log(max(2, len(prompts)), WAYS))
    # A rest of one token of its prompt is one place, and where it decodes is another.
    places = 1 + decode_only
    assert losses <= at_fault * (places + dies + divisions + MOST_ALONE)
    for name, prompt in prompts.items():
        output, reason = expected_output(prompt, limits[name])
        end, got = world.ends[name], world.outputs.get(name, [])
        if end.reason is FinishReason.ERROR:
            assert prompt[0] >= CULPRIT
            assert "out of order" in end.error
            assert got == output[: len(got)]
        else:
            assert (got, end.reason) == (output, reason)
    # One that would get there cannot have completed.
    for name, prompt in prompts.items():
        output, _ = expected_output(prompt, limits[name])
        if prompt[0] >= CULPRIT and not decode_only and len(prompt) + len(output) - 1 > place:
            assert world.ends[name].reason is FinishReason.ERROR
    assert world.scheduler.allocator.used == 0


def test_a_row_that_the_stage_names_ends_alone_and_no_epoch_is_lost() -> None:
    """In the middle of its prompt, and while it decodes; its neighbours' tokens are their own."""
    world = World(stages=2, kv_blocks=400, block_size=8, microbatches=0)
    prompts = {f"s{i}": tuple(range(i + 1, i + 61)) for i in range(6)}
    arrivals = [NewSequence(name, prompts[name], SamplingParams(max_tokens=20)) for name in prompts]
    world.handle(SequencesArrived(tuple(arrivals)))
    victims = {"s1": 0, "s4": 5}
    while world.fake.queue:
        done = world.fake.execute()
        errors = [
            RowError(one.key, f"{name} has no grammar", "response_format" if name == "s1" else None)
            for name, after in victims.items()
            if (one := world.scheduler.sequences.get(name)) and one.key and len(one.output) >= after
        ]
        sampled = SampledTokens(done.sampled.token_ids, (), tuple(errors))
        world.handle(StepDone(done.step_id, sampled))
    for name, prompt in prompts.items():
        if name in victims:
            assert world.ends[name].error == f"{name} has no grammar"
            assert world.ends[name].fault == ("response_format" if name == "s1" else None)
            assert len(world.outputs.get(name, [])) == victims[name]
        else:
            assert (world.outputs[name], world.ends[name].reason) == expected_output(prompt, 20)
    assert world.epoch == 1


def test_suspects_are_cancelled_and_newcomers_wait_while_they_are_tried() -> None:
    """Neither stops the search; a neighbour that two deaths hit by chance is not ended for it."""
    world = World(stages=2, kv_blocks=400, block_size=8, microbatches=0)
    prompts = {f"s{i}": (i + 1, *range(20)) for i in range(20)}
    arrivals = [NewSequence(name, prompts[name], SamplingParams(max_tokens=30)) for name in prompts]
    world.handle(SequencesArrived(tuple(arrivals[:-1])))
    for _ in range(2):
        world.handle(world.fake.execute())
        world.lose_stages(died=True)
    world.handle(world.fake.execute())
    world.handle(SequenceCancelled("s0"))
    world.handle(SequencesArrived((arrivals[-1],)))
    world.run_dry()
    for name, prompt in list(prompts.items())[1:]:
        assert (world.outputs[name], world.ends[name].reason) == expected_output(prompt, 30)


@pytest.mark.parametrize("count", [1, 6])
def test_a_link_that_breaks_again_and_again_convicts_nobody(count: int) -> None:
    """Always at the same place, for no process has died: what was in flight is what always is."""
    world = World(stages=2, kv_blocks=400, block_size=8, microbatches=0)
    prompts = {f"s{i}": (i + 1, *range(20)) for i in range(count)}
    arrivals = [NewSequence(name, prompts[name], SamplingParams(max_tokens=30)) for name in prompts]
    world.handle(SequencesArrived(tuple(arrivals)))
    for _ in range(20):
        world.lose_stages("unreachable", link=True)
    world.run_dry()
    for name, prompt in prompts.items():
        assert (world.outputs[name], world.ends[name].reason) == expected_output(prompt, 30)

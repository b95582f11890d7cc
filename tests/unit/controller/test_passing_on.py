"""Sequences that go on elsewhere after their prompts get no second token here, and all end that stay."""

from __future__ import annotations

from random import Random

import pytest

from controller.scheduler.events import HandOverAsked, NewSequence, SequencesArrived, Tick
from controller.scheduler.passing_on import FEW, HELD_S, SEEN
from tests.unit.controller.test_scheduler import World, prompt_of
from tidepipe_common.types.sampling import SamplingParams


def arrive(world: World, name: str) -> None:
    sampling, prompt = SamplingParams(max_tokens=30, seed=1, ignore_eos=True), prompt_of(Random(name), 20)
    new = NewSequence(name, prompt, sampling, first_token_due=world.now + 5.0, tpot_s=0.1)
    world.handle(SequencesArrived((new,)))


def until_first_token(world: World, name: str) -> None:
    while name not in world.outputs and name not in world.ends:
        world.handle(world.fake.execute())


@pytest.mark.parametrize("microbatches", [0, 2])
def test_who_is_expected_to_leave_waits_for_it_but_not_for_long(microbatches: int) -> None:
    """After some that left, the next has one token when it does; when none is asked for, all decode on."""
    world = World(2, 160, 4, microbatches, "auto")
    for number in range(SEEN + 3):
        name = f"r{number}"
        arrive(world, name)
        until_first_token(world, name)
        expected = world.scheduler.state.passing_on.expected
        assert expected is (number >= SEEN - 1)
        for _ in range(2):
            world.handle(world.fake.execute() if world.fake.queue else Tick())
        assert (len(world.outputs[name]) == 1) is expected
        world.handle(HandOverAsked(((name, f"t{number}"),), 5.0))
        while world.fake.queue:
            world.handle(world.fake.execute())
        assert name not in world.scheduler.sequences and len(world.outputs[name]) <= FEW
    for number in range(3):
        arrive(world, f"s{number}")
    until_first_token(world, "s2")
    world.now += HELD_S
    world.handle(Tick())
    while world.fake.queue:
        world.handle(world.fake.execute())
    assert not world.scheduler.state.passing_on.expected
    assert not world.scheduler.sequences and {"s0", "s1", "s2"} <= set(world.ends)

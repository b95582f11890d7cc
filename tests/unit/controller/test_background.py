"""What somebody waits for goes before what nobody does, in the waiting line and in memory."""

from __future__ import annotations

from controller.scheduler.actions import Preempted
from controller.scheduler.events import NewSequence, SequencesArrived
from tests.unit.controller.test_scheduler import World
from tidepipe_common.types.sampling import SamplingParams


def _new(name: str, prompt: int, output: int, **more: object) -> NewSequence:
    sampling = SamplingParams(max_tokens=output, ignore_eos=True)
    return NewSequence(name, tuple(range(1, prompt + 1)), sampling, **more)  # type: ignore[arg-type]


def test_a_batch_makes_way_in_memory_and_comes_back() -> None:
    world = World(stages=1, kv_blocks=20, block_size=16, microbatches=1, case="hybrid")
    world.handle(SequencesArrived(tuple(_new(f"b{i}", 40, 40, background=True) for i in range(4))))
    for _ in range(20):
        world.handle(world.fake.execute())
    assert world.scheduler.running == 4, "nobody else is there, and there is room for all of them"
    world.handle(SequencesArrived((_new("now", 120, 10),)))
    while "now" not in world.ends:
        world.handle(world.fake.execute())
    lost = [action.sequence_id for action in world.trace if isinstance(action, Preempted)]
    assert lost and all(name.startswith("b") for name in lost)
    first = len(world.outputs["now"])
    assert first == 10 and not any(name in world.ends for name in lost), "it did not wait for their end"
    world.run_dry()
    assert len(world.ends) == 5


def test_beside_a_target_a_batch_waits_if_nothing_is_known_of_costs() -> None:
    world = World(stages=1, kv_blocks=64, block_size=16, microbatches=1, case="hybrid")
    world.handle(SequencesArrived((_new("now", 20, 5, tpot_s=0.1),)))
    world.handle(SequencesArrived((_new("later", 20, 5, background=True),)))
    while "now" not in world.ends:
        assert len(world.scheduler.background) == 1
        world.handle(world.fake.execute())
    world.run_dry()
    assert "later" in world.ends


def test_who_is_more_urgent_goes_first_and_waiting_makes_up_for_it() -> None:
    world = World(stages=1, kv_blocks=8, block_size=16, microbatches=1, case="hybrid")
    world.handle(SequencesArrived((_new("runs", 100, 20),)))  # all of the memory
    world.handle(SequencesArrived((_new("patient", 60, 40, priority=5),)))
    world.now += 1.0
    world.handle(SequencesArrived((_new("usual", 60, 40), _new("urgent", 60, 40, priority=-3))))
    world.now += 10.0
    world.handle(SequencesArrived((_new("too late", 60, 40, priority=-3),)))
    world.run_dry()
    order = [name for name in world.outputs if name != "runs"]
    assert order == ["urgent", "usual", "patient", "too late"]


def test_a_prompt_that_may_not_go_on_gives_its_memory_back() -> None:
    """Else nobody would ever move: it has no room in steps beside a target, the other none in memory."""
    world = World(stages=1, kv_blocks=12, block_size=16, microbatches=1, case="hybrid")
    world.handle(SequencesArrived((_new("later", 140, 5, background=True),)))
    world.handle(world.fake.execute())
    assert world.scheduler.running == 1 and "later" not in world.outputs
    world.handle(SequencesArrived((_new("now", 120, 5, tpot_s=1e-9),)))
    while "now" not in world.ends:
        world.handle(world.fake.execute())
    world.run_dry()
    assert "later" in world.ends

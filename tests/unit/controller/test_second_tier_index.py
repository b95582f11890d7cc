"""The index of the second tier by itself; together with the block store it is in test_scheduler.py."""

from __future__ import annotations

from controller.scheduler.offload import OffloadCapacity, OffloadStats, SecondTier
from tidepipe_common.types.plan import BlockCopies


def test_slots_that_are_read_in_a_step_are_not_written_in_it() -> None:
    """Saves come first, so they would destroy what is loaded, also after everything was cleared."""
    tier = SecondTier(OffloadCapacity(2, 0.1, 3), 16, OffloadStats())
    tier.evicted(b"b", 1)
    tier.evicted(b"a", 0)
    assert tier.take_copies() == BlockCopies(saves=((1, 0), (0, 1)))
    for clear in (False, True):
        tier.load([b"a", b"b"], [4, 5])
        if clear:
            tier.clear()
        tier.evicted(b"c", 6)
        assert tier.take_copies() == BlockCopies(loads=((0, 5), (1, 4)))
        tier.check()
    tier.evicted(b"c", 6)
    assert tier.take_copies().saves


def test_the_end_of_a_chain_goes_first() -> None:
    """Of too many evictions in one step, and when slots are short."""
    tier = SecondTier(OffloadCapacity(2, 0.1, 3), 16, OffloadStats())
    for depth in (3, 2, 1, 0):
        tier.evicted(bytes([depth]), depth)
    # Three in a step at most, of which two find a slot.
    tier.take_copies()
    assert (tier.find([bytes([0]), bytes([1]), bytes([2])], 0), len(tier)) == (2, 2)
    assert (tier.stats.saved, tier.stats.evicted) == (2, 2)

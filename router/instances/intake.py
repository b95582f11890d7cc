"""Takes in what an instance reports of its sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import structlog

from router.instances.host import StayHost
from router.instances.placement import Placement, PlacementTable, Stay
from router.instances.sequence import Progress
from router.instances.wire import news_from_wire
from tidepipe.v1 import controller_pb2 as pb
from tidepipe_common.types.sampling import FinishReason

MAX_GAPS = 5
"""Gaps in a row after which a sequence is taken elsewhere; one is healed by asking again."""

log = structlog.get_logger()


class ResultIntake:
    """Passes news on to sequences; finds out which stays are over."""

    def __init__(
        self,
        placements: PlacementTable,
        host: StayHost,
        cancel: Callable[[str], None],
        acknowledge: Callable[[str], None],
    ) -> None:
        """cancel: tells the instance to end a stay. acknowledge: tells it that we have the end of one."""
        self._placements = placements
        self._host = host
        self._cancel = cancel
        self._acknowledge = acknowledge

    def take(self, update: pb.SequenceUpdate) -> bool:
        """Pass one piece of news on. False if news before it are missing: ask again, with positions."""
        placement = self._placements.get(update.sequence_id)
        news = news_from_wire(update)
        if placement is None:
            # A stay that ended here, while the instance did not hear of it.
            if news.finish_reason is None:
                self._cancel(update.sequence_id)
            else:
                self._acknowledge(update.sequence_id)
            return True
        # News prove that it is there, even if the answer to its submission was lost.
        placement.stay = Stay.HELD
        ended_there = news.finish_reason is not None
        ended_unasked = news.finish_reason is FinishReason.CANCELLED
        if ended_unasked:
            news = replace(news, finish_reason=None)
        first = not placement.sequence.output
        progress = placement.sequence.apply(news)
        if progress is Progress.GAP:
            return self._heal_gap(placement)
        placement.gaps = 0
        if ended_there:
            self._acknowledge(placement.placement_id)
        if first and news.token_ids:
            self._host.began(placement)
        self._placements.recount(placement)
        if progress is not Progress.GOES_ON:
            self._placements.remove(placement)
            if progress is Progress.ENDED_HERE and news.finish_reason is None:
                self._cancel(placement.placement_id)
            self._host.ended(placement)
        elif ended_unasked:
            self._placements.remove(placement)
            self._host.give_back([placement], "the instance cancelled it")
        return True

    def lose(self, placement_ids: Iterable[str]) -> None:
        """The instance does not have these."""
        lost = [found for name in placement_ids if (found := self._placements.get(name)) is not None]
        for placement in lost:
            self._placements.remove(placement)
            if placement.stay is Stay.SENT:
                # Its submission may yet arrive.
                self._cancel(placement.placement_id)
        if lost:
            self._host.give_back(lost, "the instance no longer has it")

    def _heal_gap(self, placement: Placement) -> bool:
        placement.gaps += 1
        log.warning("gap in results", sequence=placement.sequence.key, gaps=placement.gaps)
        if placement.gaps < MAX_GAPS:
            return False
        self._placements.remove(placement)
        self._cancel(placement.placement_id)
        self._host.give_back([placement], "its results have a gap that does not close")
        return True

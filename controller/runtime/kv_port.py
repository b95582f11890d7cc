"""The KV blocks of a pipeline towards other instances: what it hands out, and what its stages fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from controller.runtime.stage_client import StageAbout, StageClient, StageLostError
from controller.scheduler.actions import Grant
from tidepipe_common.types.kv_transfer import KvFetched, KvHandle, KvLayout, KvOrders, KvStage, node_of


class KvPort:
    """Orders out to all stages alike, their answers together. on_fetched: is told of each fetch, once."""

    def __init__(
        self, stages: Sequence[StageClient], block_size: int, lose: Callable[[StageLostError], None]
    ) -> None:
        """lose: ends the epoch."""
        self.on_fetched: Callable[[KvFetched], None] = lambda fetched: None
        self._stages = stages
        self._block_size = block_size
        self._lose = lose
        self._answers: dict[int, list[KvFetched]] = {}
        for stage in stages:
            stage.on_fetched = self._answered

    def begin_epoch(self) -> None:
        """What the epoch before began is no more."""
        self._answers.clear()

    @property
    def token_bytes(self) -> float:
        """Of one token in all layers; 0: blocks do not travel."""
        accounts = [stage.account for stage in self._stages]
        if not all(one.kv_layout for one in accounts):
            return 0.0
        layers = sum(one.layers[1] - one.layers[0] for one in accounts)
        return layers * accounts[0].kv_layer_block_bytes / self._block_size

    @property
    def bytes_per_s(self) -> float:
        """Of all stages' ways in together, if they are known; 0: they are not."""
        ways = [stage.account.kv_way_bytes_per_s for stage in self._stages]
        return sum(ways) if all(ways) else 0.0

    @property
    def node(self) -> str:
        """See `node_of`."""
        return node_of(KvStage(stage.address, *stage.account.layers, 0) for stage in self._stages)

    def layout(self, about: StageAbout | None) -> KvLayout:
        """What blocks must be like to be taken over here."""
        layouts = {stage.account.kv_layout for stage in self._stages}
        if about is None or len(layouts) != 1:
            return KvLayout()
        size = self._stages[0].account.kv_layer_block_bytes
        return KvLayout(about.fingerprint, about.dtype, layouts.pop(), self._block_size, size)

    def handle(self, about: StageAbout | None, epoch: int, grant: Grant, reason: str) -> KvHandle:
        """What another instance needs to take granted blocks over."""
        ours = self.layout(about)
        stages = tuple(
            KvStage(stage.address, *stage.account.layers, epoch) for stage in self._stages if ours.layout
        )
        layers = sum(one.layer_end - one.layer_begin for one in stages)
        return KvHandle(
            fingerprint=ours.fingerprint,
            dtype=ours.dtype,
            layout=ours.layout,
            block_size=ours.block_size,
            ticket=grant.order.ticket if ours.layout else "",
            computed=grant.computed,
            block_bytes=layers * ours.layer_block_bytes,
            lease_s=grant.lease_s,
            stages=stages,
            reason=reason,
            last_key=grant.last_key,
        )

    def order(self, orders: KvOrders) -> None:
        """Tell all stages, between the plans that were sent before and those to come."""
        for fetch in orders.fetches:
            self._answers[fetch.fetch_id] = []
        for stage in self._stages:
            try:
                stage.order(orders)
            except asyncio.QueueFull:
                self._lose(StageLostError(f"stage {stage.index} at {stage.address} takes no orders"))

    def _answered(self, stage: int, fetched: KvFetched) -> None:
        answers = self._answers.get(fetched.fetch_id)
        if answers is None:
            return
        answers.append(fetched)
        if len(answers) < len(self._stages):
            return
        del self._answers[fetched.fetch_id]
        failed = [one for one in answers if one.error]
        self.on_fetched(
            KvFetched(
                fetched.fetch_id,
                failed[0].error if failed else "",
                sum(one.nbytes for one in answers),
                max(one.seconds for one in answers),
                bool(failed) and all(one.gone for one in failed),
            )
        )

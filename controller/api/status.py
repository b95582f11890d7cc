"""The instance's account of itself, as a message."""

from __future__ import annotations

import math

from controller.runtime.body import Stage
from controller.runtime.live import LiveInstance
from controller.scheduler.scheduler import Scheduler
from tidepipe.v1 import controller_pb2
from tidepipe_common.codec.plan import phase_to_wire
from tidepipe_common.types.timeline import PhaseTurn

SWITCHES = 16
"""Reported at most."""


def instance_status(
    instance: LiveInstance, instance_id: str, incarnation: str
) -> controller_pb2.InstanceStatus:
    """How the instance stands. UnavailableError while its stages have not been up yet."""
    scheduler = instance.scheduler
    stats = scheduler.stats
    activity, now = instance.activity, instance.now()
    forecast = scheduler.state.admission.forecast.peak_tokens() / scheduler.allocator.block_size
    shares = zip(activity.busy_shares(now), activity.bubble_shares(now), strict=True)
    return controller_pb2.InstanceStatus(
        instance_id=instance_id,
        incarnation=incarnation,
        epoch=instance.body.epoch,
        serving=instance.serving,
        detail=instance.detail,
        phase=phase_to_wire(scheduler.phase),
        phase_age_s=now - scheduler.phase_since if scheduler.phase_since else 0.0,
        phase_reason=str(stats.last_switch),
        phase_switches=stats.phase_switches,
        waiting=len(scheduler.waiting),
        running=scheduler.running,
        batch_sizes=scheduler.batches.sizes(),
        kv_blocks_total=scheduler.allocator.total,
        kv_blocks_free=scheduler.allocator.free,
        block_size=scheduler.allocator.block_size,
        preemptions=stats.preemptions,
        steals=stats.steals,
        prefill_tokens=stats.prefill_tokens,
        decode_tokens=stats.output_tokens,
        predictor_fallbacks=instance.lengths.fallbacks,
        stages=[
            _stage_status(stage, busy, bubbles)
            for stage, (busy, bubbles) in zip(instance.body.stages, shares, strict=True)
        ],
        policy=scheduler.policy.name,
        finished=stats.finished,
        kv_blocks_forecast=math.ceil(forecast),
        forecasts_scored=activity.scored,
        forecast_error_tokens=activity.forecast_error(),
        recent_switches=[_switch(turn, now) for turn in list(activity.turns)[-SWITCHES:]],
        window_s=activity.window_s(now),
        working_s=activity.working_s(now),
        reuse=_reuse(scheduler),
        hand_overs=_hand_overs(instance) if instance.hands_over else None,
        dispatch_s=scheduler.state.dispatch.seconds,
        dispatch_steps=scheduler.state.dispatch.measured,
    )


def _hand_overs(instance: LiveInstance) -> controller_pb2.HandOvers:
    hand_over, now = instance.scheduler.hand_over, instance.now()
    stats = hand_over.stats
    return controller_pb2.HandOvers(
        handed_over=stats.handed_over,
        taken_over=stats.taken_over,
        recomputed=stats.recomputed,
        fetched_bytes=stats.fetched_bytes,
        fetch_s=stats.fetch_s,
        found_blocks=stats.found_blocks,
        expired=stats.expired,
        bytes_per_s=hand_over.transfers.far.bytes_per_s,
        latency_s=hand_over.transfers.far.latency_s,
        near_bytes_per_s=hand_over.transfers.near.bytes_per_s,
        near_latency_s=hand_over.transfers.near.latency_s,
        recent=[controller_pb2.HandOverNote(age_s=now - at, text=text) for at, text in instance.moves],
    )


def _reuse(scheduler: Scheduler) -> controller_pb2.PrefixReuse:
    reuse, store = scheduler.stats.reuse, scheduler.allocator
    return controller_pb2.PrefixReuse(
        on=scheduler.config.prefix_caching,
        kept_blocks=store.kept,
        findable_blocks=store.findable,
        asked_tokens=reuse.asked_tokens,
        found_tokens=reuse.found_tokens,
        found_again_tokens=reuse.found_again_tokens,
        evicted_blocks=reuse.evicted_blocks,
    )


def _switch(turn: PhaseTurn, now: float) -> controller_pb2.PhaseSwitch:
    return controller_pb2.PhaseSwitch(
        age_s=now - turn.at_s,
        before=phase_to_wire(turn.before),
        after=phase_to_wire(turn.after),
        reason=turn.reason,
    )


def _stage_status(stage: Stage, busy: float, bubbles: float) -> controller_pb2.StageStatus:
    account = stage.account
    about = account.about
    return controller_pb2.StageStatus(
        index=stage.index,
        address=stage.address,
        pid=about.pid if about else 0,
        layer_begin=account.layers[0],
        layer_end=account.layers[1],
        rss_bytes=account.rss_bytes,
        prefill_busy_s=account.prefill_busy_s,
        decode_busy_s=account.decode_busy_s,
        plan_wait_s=account.plan_wait_s,
        alive=account.alive,
        device=about.device if about else "",
        dtype=about.dtype if about else "",
        slow_because=account.slow_because,
        busy_share=busy,
        bubble_share=bubbles,
    )

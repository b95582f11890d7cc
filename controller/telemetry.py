"""The controller's metrics (docs/reference/metrics.md): counted from what its scheduler heard and decided."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from controller.runtime.activity_recorder import MAX_PREDICTED
from controller.runtime.live import LiveInstance
from controller.scheduler.actions import Action, Finish, HandedOver, PhaseSwitched
from controller.scheduler.events import Event, LengthPredicted, StagesLost
from controller.scheduler.scheduler import Scheduler
from tidepipe_common.telemetry.buckets import TOKENS
from tidepipe_common.telemetry.telemetry import Telemetry, gauge, total
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.sampling import FinishReason


class ControllerMetrics:
    """An observer of one scheduler's events and actions; the rest is read from it at each scrape."""

    def __init__(self, telemetry: Telemetry, instance_id: str) -> None:
        self._label = {"instance_id": instance_id}
        self._phase_s: defaultdict[Phase, float] = defaultdict(float)
        self._since: float | None = None
        self._now = 0.0
        self._phase = Phase.IDLE
        self._switches: Counter[tuple[str, str, str]] = Counter()
        self._predicted: dict[str, tuple[float, float]] = {}
        self._recoveries = 0
        self._scored = 0
        self._within_p90 = 0
        self._core_s = 0.0
        self._error = telemetry.histogram(
            "tidepipe_forecast_error_tokens",
            "|predicted median - length| of outputs that ended by themselves.",
            TOKENS,
        )
        self._telemetry = telemetry

    def note(self, event: Event, actions: Sequence[Action], now: float, seconds: float) -> None:
        """The scheduler heard an event and decided, which took so many seconds."""
        self._core_s += seconds
        self._now = now
        if self._since is None:
            self._since = now
        if isinstance(event, LengthPredicted) and not event.at:
            # Later ones, of those that have grown, are easier.
            self._predicted[event.sequence_id] = (event.p50, event.p90)
            if len(self._predicted) > MAX_PREDICTED:
                # Predictions that came after their sequence had ended, oldest first.
                del self._predicted[next(iter(self._predicted))]
        elif isinstance(event, StagesLost):
            self._recoveries += 1
        for action in actions:
            if isinstance(action, Finish):
                self._score(action)
            elif isinstance(action, HandedOver):
                self._predicted.pop(action.sequence_id, None)
            elif isinstance(action, PhaseSwitched):
                self._turn(action, now)

    def _score(self, action: Finish) -> None:
        predicted = self._predicted.pop(action.sequence_id, None)
        # An output that was cut says nothing about how long it would have become.
        if predicted is None or action.reason is not FinishReason.STOP:
            return
        p50, p90 = predicted
        self._scored += 1
        self._within_p90 += action.output_tokens <= p90
        self._error.observe(abs(p50 - action.output_tokens))

    def _turn(self, action: PhaseSwitched, now: float) -> None:
        assert self._since is not None
        self._phase_s[self._phase] += now - self._since
        self._phase, self._since = action.after, now
        # Some reasons end with a detail behind a colon, which would make endless label values.
        reason = action.reason.text.partition(":")[0]
        self._switches[action.before.value, action.after.value, reason] += 1

    def export(self, instance: LiveInstance) -> None:
        """Add the instance's metrics to the registry."""
        self._telemetry.at_scrape(lambda: self._metrics(instance))

    def _metrics(self, instance: LiveInstance) -> Iterable[Metric]:
        label = self._label
        yield gauge("tidepipe_instance_serving", "1 while all stages answer.", instance.serving, **label)
        yield gauge("tidepipe_epoch", "Generation of the stages' state.", instance.body.epoch, **label)
        yield total("tidepipe_recoveries", "Times that stages were lost.", self._recoveries, **label)
        fallbacks = instance.lengths.fallbacks
        yield total("tidepipe_predictor_fallbacks", "Predictions that the fallback gave.", fallbacks, **label)
        lengths = instance.lengths
        yield total("tidepipe_predictor_signals", "Prompts with a length signal.", lengths.signals, **label)
        bad = lengths.bad_signals
        yield total("tidepipe_predictor_bad_signals", "Length signals that are none.", bad, **label)
        yield total("tidepipe_predictor_refreshed", "Asked anew as it grew.", lengths.refreshed, **label)
        lost = lengths.observations_lost
        yield total("tidepipe_predictor_observations_lost", "Ends that it never heard of.", lost, **label)
        yield total("tidepipe_predictions_scored", "Predicted outputs that ended.", self._scored, **label)
        yield total("tidepipe_predictions_within_p90", "Of these, not above p90.", self._within_p90, **label)
        yield total("tidepipe_scheduler_seconds", "Time spent deciding.", self._core_s, **label)
        yield from self._running_steps(instance)
        yield from self._phases()
        if instance.ready:
            yield from _scheduler_metrics(instance.scheduler, label)

    def _running_steps(self, instance: LiveInstance) -> Iterable[Metric]:
        labels = [*self._label, "stage"]
        text = "How long the stage has been at its oldest step; far beyond its cost, the stage is lost."
        age = GaugeMetricFamily("tidepipe_running_step_seconds", text, labels=labels)
        for index in range(len(instance.body.stages)):
            age.add_metric([*self._label.values(), str(index)], instance.body.watch.running_s(index))
        yield age

    def _phases(self) -> Iterable[Metric]:
        names = list(self._label)
        values = list(self._label.values())
        present = GaugeMetricFamily("tidepipe_phase", "1 for the present phase.", labels=[*names, "phase"])
        seconds = CounterMetricFamily(
            "tidepipe_phase_seconds", "Time in each phase.", labels=[*names, "phase"]
        )
        for phase in Phase:
            running = self._now - self._since if phase is self._phase and self._since is not None else 0.0
            present.add_metric([*values, phase.value], phase is self._phase)
            seconds.add_metric([*values, phase.value], self._phase_s[phase] + running)
        yield present
        yield seconds
        switches = CounterMetricFamily(
            "tidepipe_phase_switches", "Turns of the phase.", labels=[*names, "before", "after", "reason"]
        )
        for (before, after, reason), count in self._switches.items():
            switches.add_metric([*values, before, after, reason], count)
        yield switches


def _scheduler_metrics(scheduler: Scheduler, label: dict[str, str]) -> Iterable[Metric]:
    stats, allocator = scheduler.stats, scheduler.allocator
    used = (allocator.total - allocator.free) / allocator.total if allocator.total else 0.0
    yield gauge("num_requests_running", "Sequences that hold KV blocks.", scheduler.running, **label)
    yield gauge("num_requests_waiting", "Sequences waiting for prefill.", len(scheduler.waiting), **label)
    yield gauge("kv_cache_usage_perc", "Used share of the KV blocks, 1 is all.", used, **label)
    yield gauge("tidepipe_kv_blocks", "KV blocks of each stage.", allocator.total, **label)
    slack = scheduler.state.admission.slack()
    yield gauge("tidepipe_kv_slack", "Share that neither use nor forecast takes.", slack, **label)
    yield gauge("tidepipe_decode_batches", "Decode micro-batches.", len(scheduler.batches.sizes()), **label)
    way = scheduler.state.dispatch
    yield gauge("tidepipe_dispatch_seconds", "What a step costs beside computing.", way.seconds, **label)
    yield total("tidepipe_dispatch_steps", "Steps by which that was measured.", way.measured, **label)
    yield total("num_preemptions", "Sequences that lost their KV blocks.", stats.preemptions, **label)
    yield total("tidepipe_steals", "Sequences moved between decode batches.", stats.steals, **label)
    yield total("tidepipe_prefill_tokens", "Prompt tokens computed.", stats.prefill_tokens, **label)
    yield total("tidepipe_decode_tokens", "Decode rows computed.", stats.decode_tokens, **label)
    yield total("tidepipe_output_tokens", "Tokens delivered.", stats.output_tokens, **label)
    yield total("tidepipe_sequences_finished", "Sequences that ended.", stats.finished, **label)
    yield from _reuse_metrics(scheduler, label)
    yield from _offload_metrics(scheduler, label)
    yield from _hand_over_metrics(scheduler, label)


def _reuse_metrics(scheduler: Scheduler, label: dict[str, str]) -> Iterable[Metric]:
    reuse, store = scheduler.stats.reuse, scheduler.allocator
    on = scheduler.config.prefix_caching
    yield gauge("tidepipe_prefix_caching", "1 if KV blocks are kept and shared.", on, **label)
    asked = "Tokens of sequences when they were given KV blocks."
    yield total("prefix_cache_queries", asked, reuse.asked_tokens, **label)
    found = "Of these, tokens whose blocks were found."
    yield total("prefix_cache_hits", found, reuse.found_tokens, **label)
    saved = CounterMetricFamily(
        "tidepipe_saved_tokens", "Tokens that were found and not computed.", labels=[*label, "of"]
    )
    saved.add_metric([*label.values(), "prompt"], reuse.found_tokens - reuse.found_again_tokens)
    saved.add_metric([*label.values(), "recomputation"], reuse.found_again_tokens)
    yield saved
    evicted = "Contents given up because their memory was needed."
    yield total("tidepipe_evicted_blocks", evicted, reuse.evicted_blocks, **label)
    yield gauge("tidepipe_kept_blocks", "KV blocks kept although nobody uses them.", store.kept, **label)
    yield gauge("tidepipe_findable_blocks", "KV blocks whose content can be found.", store.findable, **label)


def _offload_metrics(scheduler: Scheduler, label: dict[str, str]) -> Iterable[Metric]:
    stats, tier = scheduler.stats.offload, scheduler.state.tier
    slots, held = (tier.capacity.slots, len(tier)) if tier is not None else (0, 0)
    name = "tidepipe_kv_offload"
    yield gauge(f"{name}_slots", "Blocks that the second tier has room for.", slots, **label)
    yield gauge(f"{name}_blocks", "Blocks that it holds.", held, **label)
    yield total(f"{name}_saved_blocks", "Evicted blocks that went there.", stats.saved, **label)
    yield total(f"{name}_loaded_blocks", "Blocks that came back.", stats.loaded, **label)
    yield total(f"{name}_evicted_blocks", "Contents that it gave up or did not take.", stats.evicted, **label)
    yield total(f"{name}_refused_blocks", "Found there, but sooner computed.", stats.refused, **label)
    yield total(f"{name}_load_seconds", "Predicted for what was loaded.", stats.load_s, **label)
    yield total(f"{name}_compute_seconds", "Predicted for computing it.", stats.compute_s, **label)


def _hand_over_metrics(scheduler: Scheduler, label: dict[str, str]) -> Iterable[Metric]:
    stats, transfers = scheduler.hand_over.stats, scheduler.hand_over.transfers
    name = "tidepipe_hand_over"
    yield total(f"{name}_left", "Sequences that went on at other instances.", stats.handed_over, **label)
    yield total(f"{name}_came", "That came, and go on behind their blocks.", stats.taken_over, **label)
    yield total(f"{name}_recomputed", "That came with blocks, in vain.", stats.recomputed, **label)
    yield total(f"{name}_fetched_bytes", "Of KV blocks that came.", stats.fetched_bytes, **label)
    yield total(f"{name}_fetch_seconds", "Of fetches, each by itself.", stats.fetch_s, **label)
    yield total(f"{name}_found_blocks", "Not sent: their content was here.", stats.found_blocks, **label)
    yield total(f"{name}_expired", "Grants that ended by time.", stats.expired, **label)
    for way, one in (("", transfers.far), ("_near", transfers.near)):
        where = "within the node" if way else "from other nodes"
        yield gauge(f"{name}{way}_bytes_per_second", f"Rate expected {where}.", one.bytes_per_s, **label)
        yield gauge(f"{name}{way}_latency_seconds", f"Fixed time expected {where}.", one.latency_s, **label)
    loans, name = scheduler.hand_over.loans.stats, "tidepipe_prefix_loans"
    yield total(f"{name}_lent", "Beginnings that others could fetch.", loans.lent, **label)
    yield total(f"{name}_borrowed", "Beginnings that were fetched.", loans.borrowed, **label)
    yield total(f"{name}_borrowed_tokens", "Of these beginnings.", loans.borrowed_tokens, **label)
    yield total(f"{name}_in_vain", "Sequences that waited for one in vain.", loans.in_vain, **label)

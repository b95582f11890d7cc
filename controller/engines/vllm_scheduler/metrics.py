"""The brain's metrics for Prometheus, at a port of their own: vLLM's `/metrics` is another process's.

Only what vLLM brings itself is imported. Scrapes come in a thread of the server's; all that is read is a
number, or a copy of a counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from controller.engines.vllm_scheduler.mirror import Mirror
from controller.engines.vllm_scheduler.record import Record
from tidepipe_common.errors import ConfigError


class Metrics:
    """What a scrape is told."""

    def __init__(self, record: Record, mirror: Mirror, step_tokens: Callable[[], int]) -> None:
        """step_tokens: of the next steps at most."""
        self._record = record
        self._mirror = mirror
        self._step_tokens = step_tokens

    def collect(self) -> Iterable[Metric]:
        """Part of prometheus_client's Collector."""
        record, scheduler = self._record, self._mirror.scheduler
        yield _total("tidepipe_steps", "Steps that are back.", record.counts["steps"])
        yield _total("tidepipe_tokens", "Tokens that they computed.", record.counts["tokens"])
        yield _total("tidepipe_stage_seconds", "What they took at each stage, together.", record.stage_s)
        yield _gauge("tidepipe_step_tokens", "Tokens of a step at most.", self._step_tokens())
        yield _gauge("tidepipe_running", "Sequences that hold KV blocks.", scheduler.running)
        yield _gauge("tidepipe_waiting", "Sequences that wait for their prompt.", len(scheduler.waiting))
        phase = scheduler.phase.value
        yield _labelled(
            GaugeMetricFamily("tidepipe_phase", "1 for the present phase.", labels=["phase"]), {(phase,): 1}
        )
        switches = CounterMetricFamily(
            "tidepipe_phase_switches", "Turns of the phase.", labels=["before", "after", "reason"]
        )
        yield _labelled(switches, dict(record.switches))
        events = CounterMetricFamily(
            "tidepipe_events", "What seldom happens, such as steps of vLLM's own choice.", labels=["event"]
        )
        yield _labelled(events, {(name,): count for name, count in dict(record.events).items()})
        differences = CounterMetricFamily(
            "tidepipe_mirror_differences", "Where vLLM did otherwise than was planned.", labels=["difference"]
        )
        yield _labelled(
            differences, {(what,): count for what, count in dict(self._mirror.differences).items()}
        )


def serve(metrics: Metrics, host: str, port: int) -> Callable[[], None]:
    """Answer scrapes from now on; returns what ends that. ConfigError if the port cannot be had."""
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"metrics: cannot listen on {host}:{port} ({error.strerror or error})") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5.0)

    return close


def _total(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_text, value=value)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[Any, float]) -> Metric:
    """values: by their labels."""
    for labels, value in values.items():
        family.add_metric(list(labels), value)
    return family

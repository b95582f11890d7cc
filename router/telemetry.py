"""The router's metrics (docs/reference/metrics.md): requests as clients see them, and the instances."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from router.batches.database import Database
from router.instances.registry import InstanceRegistry
from router.models.models import ServedModels
from router.requests.meter import EndedAnswer
from router.requests.table import RequestTable
from tidepipe_common.http.server import HttpServer
from tidepipe_common.security.key_access import KeyAccess
from tidepipe_common.telemetry.buckets import REQUEST_S, TOKEN_S, TOKENS, TTFT_S
from tidepipe_common.telemetry.telemetry import Telemetry, gauge, total
from tidepipe_common.types.sampling import FinishReason

ABORTED = "abort"
"""What vLLM calls an answer that its client gave up."""


class RequestMetrics:
    """What is measured of requests, by model. Names and buckets are vLLM's, so that its dashboards and
    benchmarks carry over."""

    def __init__(self, telemetry: Telemetry) -> None:
        label = ("model_name",)
        hist, count = telemetry.histogram, telemetry.counter
        self.ttft = hist("time_to_first_token_seconds", "From arrival to the first token.", TTFT_S, label)
        self.itl = hist("inter_token_latency_seconds", "Between two tokens.", TOKEN_S, label)
        self.tpot = hist(
            "request_time_per_output_token_seconds", "(last - first token) / (tokens - 1).", TOKEN_S, label
        )
        self.e2e = hist("e2e_request_latency_seconds", "From arrival to the end.", REQUEST_S, label)
        self.prompt_length = hist("request_prompt_tokens", "Prompt lengths.", TOKENS, label)
        self.answer_length = hist("request_generation_tokens", "Answer lengths.", TOKENS, label)
        self.prompt = count("prompt_tokens", "Prompt tokens of admitted requests.", label)
        self.generated = count("generation_tokens", "Tokens received.", label)
        self.success = count("request_success", "Answers that ended well.", (*label, "finished_reason"))
        self.failed = count("tidepipe_request_failures", "Answers that ended with an error.", label)


class ModelMetrics:
    """A RequestMeter of one model."""

    def __init__(self, metrics: RequestMetrics, model_name: str) -> None:
        self._ttft = metrics.ttft.labels(model_name)
        self._itl = metrics.itl.labels(model_name)
        self._tpot = metrics.tpot.labels(model_name)
        self._e2e = metrics.e2e.labels(model_name)
        self._prompt_length = metrics.prompt_length.labels(model_name)
        self._answer_length = metrics.answer_length.labels(model_name)
        self._prompt = metrics.prompt.labels(model_name)
        self._generated = metrics.generated.labels(model_name)
        self._success = {
            reason: metrics.success.labels(
                model_name, ABORTED if reason is FinishReason.CANCELLED else reason.value
            )
            for reason in FinishReason
            if reason is not FinishReason.ERROR
        }
        self._failed = metrics.failed.labels(model_name)

    def admitted(self, prompt_tokens: int) -> None:
        """Part of RequestMeter."""
        self._prompt.inc(prompt_tokens)
        self._prompt_length.observe(prompt_tokens)

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """Part of RequestMeter."""
        self._ttft.observe(since_arrival_s)
        self._generated.inc(count)

    def more_tokens(self, count: int, since_last_s: float) -> None:
        """Part of RequestMeter."""
        # Tokens that travelled together share the time since those before them.
        for _ in range(count):
            self._itl.observe(since_last_s / count)
        self._generated.inc(count)

    def ended(self, answer: EndedAnswer) -> None:
        """Part of RequestMeter."""
        if answer.reason is FinishReason.ERROR:
            self._failed.inc(not answer.shed)
            return
        self._success[answer.reason].inc()
        self._e2e.observe(answer.since_arrival_s)
        self._answer_length.observe(answer.usage.output_tokens)
        if answer.per_token_s is not None:
            self._tpot.observe(answer.per_token_s)


def export_router_metrics(
    telemetry: Telemetry, table: RequestTable, registry: InstanceRegistry, models: ServedModels
) -> None:
    """Add what the router knows of its queue and its instances to the registry."""

    def read() -> Iterable[Metric]:
        counts = table.counts
        requests = GaugeMetricFamily("tidepipe_router_requests", "Requests by state.", labels=["state"])
        requests.add_metric(["queued"], counts.queued)
        requests.add_metric(["running"], counts.running)
        yield requests
        yield gauge("tidepipe_router_max_requests", "Requests accepted at a time.", table.max_requests)
        yield total("tidepipe_router_shed_requests", "Requests told to come again later.", counts.shed)
        yield total("tidepipe_router_moved_sequences", "Sequences that an instance gave back.", models.moved)
        serving = GaugeMetricFamily(
            "tidepipe_router_model_instances", "Instances that the router reaches.", labels=["model_name"]
        )
        waiting = GaugeMetricFamily(
            "tidepipe_router_model_pending", "Answers that wait for an instance.", labels=["model_name"]
        )
        for model in models:
            serving.add_metric([model.name], sum(link.connected for link in model.links))
            waiting.add_metric([model.name], len(model.dispatcher.scheduler.pending))
        yield serving
        yield waiting
        instances = GaugeMetricFamily(
            "tidepipe_router_instance_connected", "1 if the router reaches it.", labels=["instance_id"]
        )
        assigned = GaugeMetricFamily(
            "tidepipe_router_instance_sequences", "Sequences placed there.", labels=["instance_id"]
        )
        for link in registry:
            instances.add_metric([link.instance_id], link.connected)
            assigned.add_metric([link.instance_id], len(link.placements))
        yield instances
        yield assigned

    telemetry.at_scrape(read)


def export_batches(telemetry: Telemetry, database: Database) -> None:
    """Add whether the store of batches works."""

    def read() -> Iterable[Metric]:
        yield gauge(
            "tidepipe_batches_waiting_for_storage", "1 if batches stand still.", bool(database.trouble)
        )

    telemetry.at_scrape(read)


def export_connections(telemetry: Telemetry, server: HttpServer) -> None:
    """Add what stands at the HTTP door."""

    def read() -> Iterable[Metric]:
        standing = server.standing
        if standing is None:
            return
        yield gauge("tidepipe_http_connections", "Open connections.", standing.open)
        yield gauge("tidepipe_http_max_connections", "Connections at a time.", standing.limit)
        yield total("tidepipe_http_connections_accepted", "Connections taken in.", standing.accepted)
        yield total(
            "tidepipe_http_connections_given_up",
            "Connections without a request that made room for others.",
            standing.given_up,
        )
        yield total("tidepipe_http_connections_refused", "For want of room.", standing.refused)
        yield total(
            "tidepipe_http_descriptors_exhausted",
            "Times that the process had no descriptor left for a connection.",
            standing.out_of_descriptors,
        )

    telemetry.at_scrape(read)


def export_keys(telemetry: Telemetry, keys: KeyAccess) -> None:
    """Add what each API key uses, by its public id."""

    def read() -> Iterable[Metric]:
        running = GaugeMetricFamily("tidepipe_key_answers", "Answers that run, by API key.", labels=["key"])
        tokens = CounterMetricFamily(
            "tidepipe_key_tokens", "Tokens of ended prompts and answers, by API key.", labels=["key"]
        )
        for key_id, (answers, used) in keys.usage().items():
            running.add_metric([key_id], answers)
            tokens.add_metric([key_id], used)
        yield running
        yield tokens

    telemetry.at_scrape(read)

"""`python -m controller.upstream`: an instance that stands for an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric

from controller.api.sequences import start_serving
from controller.api.upstream import NoTimelineServicer, UpstreamServicer
from controller.service import DRAIN_S, either, registered
from controller.upstream.client import UpstreamClient
from controller.upstream.instance import UpstreamInstance
from controller.upstream.link import UpstreamLink
from controller.upstream.model import read_model
from tidepipe_common.errors import ConfigError
from tidepipe_common.model_source import resolve_tokenizer
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service, settings_or_exit
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.upstream import UPSTREAM_API_KEY, UpstreamSettings, check_key_travels
from tidepipe_common.telemetry.listener import serve_metrics
from tidepipe_common.telemetry.otlp import open_traces
from tidepipe_common.telemetry.telemetry import Telemetry, gauge, total
from tidepipe_common.tokenizer_source import leave_out_torch


async def serve(settings: UpstreamSettings, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop."""
    key = os.environ.get(UPSTREAM_API_KEY, "")
    if (problem := check_key_travels(settings.url, key, settings.insecure)) is not None:
        raise ConfigError(problem)
    if not (key.isascii() and (key.isprintable())):
        raise ConfigError(f"{UPSTREAM_API_KEY} must be printable ASCII")
    path = resolve_tokenizer(settings.model)
    if path.is_dir():  # reading a GGUF file's tokenizer does need PyTorch
        leave_out_torch()
    model = await asyncio.to_thread(read_model, path)
    incarnation = uuid.uuid4().hex
    telemetry = Telemetry()
    client = UpstreamClient(settings.url, key, settings.places)
    link = UpstreamLink(
        client,
        model,
        wanted_name=settings.upstream_model,
        dialect=settings.dialect,
        context=settings.context_length,
    )
    try:
        async with (
            open_traces(settings.otlp, "upstream", settings.instance_id) as traces,
            asyncio.TaskGroup() as group,
        ):
            instance = UpstreamInstance(
                link, settings.places, settings.room, settings.first_token_s, settings.silence_s, traces
            )
            telemetry.at_scrape(lambda: _metrics(instance, settings.instance_id))
            known = asyncio.Event()
            starting = group.create_task(_bring_up(link, known), name="bring up")
            if not await either(known, lifecycle.stopping):
                starting.cancel()
                return
            await _serve(settings, lifecycle, instance, incarnation, telemetry, str(path))
    finally:
        await client.close()


async def _bring_up(link: UpstreamLink, known: asyncio.Event) -> None:
    await link.bring_up()
    known.set()


async def _serve(
    settings: UpstreamSettings,
    lifecycle: Lifecycle,
    instance: UpstreamInstance,
    incarnation: str,
    telemetry: Telemetry,
    model: str,
) -> None:
    server = RpcServer(settings.listen, telemetry=telemetry)
    address = await start_serving(
        server,
        UpstreamServicer(instance, settings, incarnation, model),
        NoTimelineServicer(settings.instance_id),
    )
    await server.set_serving(True)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(instance.run(), name="instance"),
            group.create_task(instance.link.run(), name="link"),
            group.create_task(_tell_health(server, instance.link), name="health"),
        ]
        announced = settings.advertise or address
        async with (
            registered(settings.router, settings.instance_id, announced, model, incarnation),
            serve_metrics(telemetry, settings.listen, settings.metrics_port) as metrics_address,
        ):
            lifecycle.announce_ready(address, metrics_address)
            await lifecycle.stopping.wait()
        await instance.drain(DRAIN_S)
        for task in tasks:
            task.cancel()
    await server.stop(grace_s=1.0)


async def _tell_health(server: RpcServer, link: UpstreamLink) -> None:
    while True:
        changed = link.changed.next()
        await server.set_serving(link.up)
        await changed.wait()


def _metrics(instance: UpstreamInstance, instance_id: str) -> Iterable[Metric]:
    label, stats = {"instance_id": instance_id}, instance.stats
    yield gauge("tidepipe_instance_serving", "1 while all stages answer.", instance.serving, **label)
    yield gauge("num_requests_running", "Sequences that hold KV blocks.", instance.running, **label)
    yield gauge("num_requests_waiting", "Sequences waiting for prefill.", instance.waiting, **label)
    yield total("tidepipe_output_tokens", "Tokens delivered.", stats.output_tokens, **label)
    yield total("tidepipe_sequences_finished", "Sequences that ended.", stats.finished.total(), **label)
    downs = instance.link.downs
    yield total("tidepipe_upstream_downs", "Times that the server stopped answering.", downs, **label)
    yield total("tidepipe_upstream_retries", "Requests sent again before they began.", stats.retried, **label)
    returned = CounterMetricFamily(
        "tidepipe_upstream_returned", "Requests given back for another instance.", labels=[*label, "why"]
    )
    for why, count in stats.returned.items():
        returned.add_metric([instance_id, why], count)
    yield returned
    first = instance.pace.first_token_s
    yield gauge("tidepipe_upstream_first_token_seconds", "Until an answer began, lately.", first, **label)


def main() -> int:
    """Entry point; the exit code."""
    settings = settings_or_exit(UpstreamSettings)
    return run_service(
        "upstream",
        lambda life: serve(settings, life),
        log_level=settings.log_level,
        credentials=settings.credentials,
    )

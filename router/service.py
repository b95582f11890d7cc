"""The router as a whole: wires its parts together, starts them, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from router.api.app import make_app
from router.api.dashboard.cluster import ClusterSummary
from router.api.dashboard.event_log import EventLog
from router.api.dashboard.feed import PageFeed
from router.api.grpc.admin import AdminServicer
from router.api.grpc.cluster import RouterServicer
from router.api.grpc.groups import Grouping
from router.api.grpc.inference import InferenceServicer
from router.api.grpc.services import SERVICES, Predictor, add_services, open_predictor
from router.api.grpc.timeline import TimelineServicer
from router.api.grpc.upstream import UpstreamServicer
from router.api.http.access import CertificateGate, KeyGate
from router.api.http.answers import AnswerBodies, answer_item
from router.api.http.message_errors import MessageErrors
from router.api.http.responses import teller
from router.background import background
from router.batches.jobs import BatchJobs
from router.batches.limits import FileLimits
from router.batches.opening import open_jobs
from router.batches.quotas import Quotas
from router.client_access import client_access
from router.instances.dispatcher import Dispatcher
from router.instances.handoff import InstanceHandoff
from router.instances.registry import InstanceRegistry
from router.instances.sequence import RoutedSequence
from router.instances.succession import adopt_instances, follow_successor
from router.models.maker import ModelMaker
from router.models.models import LoadText, ServedModels
from router.parent.host import UpstreamHosts
from router.parent.join import join
from router.requests.admission import Admission
from router.requests.attainment import AttainmentRecord
from router.requests.keyed import RememberedKeys
from router.requests.keyed_store import StoredKeys, open_keyed
from router.requests.revocation import end_revoked
from router.requests.table import RequestTable
from router.requests.text_port import TextPort
from router.responses.runs import ResponseRuns
from router.responses.store import ResponseLimits
from router.scheduler.slo import SloTarget
from router.telemetry import (
    RequestMetrics,
    export_batches,
    export_connections,
    export_keys,
    export_router_metrics,
)
from tidepipe_common.descriptors import limit, shares, too_few
from tidepipe_common.errors import UnavailableError
from tidepipe_common.http.server import HttpServer
from tidepipe_common.http.site import sites
from tidepipe_common.notifier import Notifier
from tidepipe_common.port_sharing import check_free
from tidepipe_common.rpc.lifecycle import Lifecycle
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.key_access import KeyAccess
from tidepipe_common.security.principals import HTTP_HANDSHAKE
from tidepipe_common.security.process import own
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.telemetry.listener import serve_metrics
from tidepipe_common.telemetry.otlp import open_traces
from tidepipe_common.telemetry.telemetry import Telemetry
from tidepipe_common.telemetry.traces import Traces

CANCEL_GRACE_S = 1.0
LINGER_S = 2.0
"""A router that was succeeded accepts connections for so long: some are on their way to it."""
LAST_WORDS_S = 2.0
"""For messages that are written already."""

log = structlog.get_logger()


class RouterService:
    """One router. `load_text`, of a model, runs in a thread: health is answered while a tokenizer loads."""

    def __init__(
        self,
        settings: RouterSettings,
        load_text: LoadText,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        # New with each start: instances must not take this router for one that is gone.
        self.router_id = f"router-{secrets.token_hex(4)}"
        self._load_text = load_text
        self._clock = clock

    @property
    def dispatcher(self) -> Dispatcher:
        """Of the router's own model."""
        return self.models.main.dispatcher

    async def run(self, lifecycle: Lifecycle) -> None:
        """Serve until told to stop. ModelError or ConfigError if it cannot start."""
        async with open_traces(self.settings.otlp, "router", self.settings.name or self.router_id) as traces:
            await self._serve(lifecycle, traces)

    async def _serve(self, lifecycle: Lifecycle, traces: Traces) -> None:
        settings, clock = self.settings, self._clock
        slo = SloTarget(settings.ttft_ms / 1000, settings.tpot_ms / 1000)
        telemetry = Telemetry()
        credentials, keys = client_access(settings.api_keys, own())
        changed = Notifier()
        record = AttainmentRecord(slo, clock)
        metrics_of = RequestMetrics(telemetry)
        make = ModelMaker(settings, self._stay_names(), metrics_of, record, changed, clock, traces)
        self.models = models = ServedModels(
            settings.served_names,
            settings.model,
            make,
            self._load_text,
            changed,
            clock,
            tokenizers=settings.tokenizers,
            choices=settings.text_choices,
        )
        self.registry = InstanceRegistry(self.router_id, models.admit, changed, clock)
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as executor:
            self.table = RequestTable(
                Admission(models, executor, settings.patience_s),
                clock,
                max_requests=settings.max_requests,
                remember_s=settings.remember_s,
                meter=models.main.meter,
                keys=keys,
                traces=traces,
            )
            models.uses = self.table.uses
            export_router_metrics(telemetry, self.table, self.registry, models)
            bodies = AnswerBodies(lambda: models.main.name)
            answer = functools.partial(answer_item, self.table, bodies)
            quotas = Quotas(
                settings.max_stored_bytes_per_key,
                settings.max_stored_items_per_key,
                (lambda owner: (None, None)) if keys is None else keys.stored,
            )
            async with (
                open_predictor(settings.predictor) as predictor,
                open_jobs(
                    settings.data_dir,
                    answer,
                    concurrency=settings.batch_concurrency,
                    limits=FileLimits(
                        settings.files_max_bytes, round(settings.files_expire_days * 86_400), quotas
                    ),
                    wait=settings.take_over,
                    keys=keys,
                ) as jobs,
                open_keyed(settings.data_dir, time.time) as keyed,
                _closed_at_the_end(models),
                background() as start,
            ):
                self.feed = self._page_feed(record)
                start(self.feed.run())
                models.run(start)
                start(self.registry.run())
                start(self.table.run())
                if keys is not None:
                    export_keys(telemetry, keys)
                    start(end_revoked(keys, self.table, jobs))
                if jobs is not None:
                    export_batches(telemetry, jobs.database)
                running_jobs = [] if jobs is None else [start(jobs.run())]
                if keyed is not None:
                    start(keyed.run())
                runs = None
                if jobs is not None and keyed is not None:
                    limits = _response_limits(settings, quotas)
                    runs = ResponseRuns(jobs.database, self.table, teller(bodies), keyed, time.time, limits)
                    running_jobs.append(start(runs.run()))
                rpc = RpcServer(
                    settings.listen, telemetry=telemetry, credentials=credentials, keys=keys, shared_port=True
                )
                hosts = UpstreamHosts(settings.name or self.router_id, models, clock, settings.max_requests)
                start(hosts.run())
                self._add_services(rpc, hosts, predictor, jobs, keys)
                if settings.take_over:
                    # Whoever comes in finds everything there.
                    await self._load(rpc)
                    await adopt_instances(self.registry, settings.listen)
                else:
                    for listen in filter(None, (settings.listen, settings.http)):
                        check_free(listen)
                http = self._http_server(models, bodies, keyed, jobs, runs, telemetry, keys)
                serving_http = None if http is None else start(http.run())
                address = await rpc.start(SERVICES)
                if settings.take_over and http is not None:
                    http.take_all()
                if not settings.take_over:
                    start(self._load(rpc))
                start(self._report_health(rpc, changed))
                if settings.overall:
                    reached = settings.advertise or address
                    start(join(settings.overall, reached, self.router_id, hosts, changed))
                await self._until_stopped(lifecycle, address, telemetry)
                # Batches and responses go on elsewhere; their folder must be free for that.
                if jobs is not None:
                    for task in running_jobs:
                        task.cancel()
                    await asyncio.wait(running_jobs)
                    jobs.database.close()
                if lifecycle.succeeded:
                    start(follow_successor(self.registry, settings.listen))
                await self._stop(lifecycle, rpc, http, serving_http, keyed)

    async def _until_stopped(self, lifecycle: Lifecycle, address: str, telemetry: Telemetry) -> None:
        settings, model = self.settings, self.models.main
        await _first(model.text, lifecycle.stopping)
        async with serve_metrics(
            telemetry, settings.listen, settings.metrics_port, shared_port=True
        ) as metrics:
            if model.loaded is not None:
                lifecycle.announce_ready(address, metrics)
            await lifecycle.stopping.wait()

    def _page_feed(self, record: AttainmentRecord) -> PageFeed:
        """What the live page is told."""
        models, clock = self.models, self._clock
        return PageFeed(
            self.router_id,
            lambda: ", ".join(models.names),
            self.registry,
            ClusterSummary(self.table, models, record, clock),
            EventLog(self.registry, models, clock),
            clock,
        )

    def _add_services(
        self,
        rpc: RpcServer,
        hosts: UpstreamHosts,
        predictor: Predictor | None,
        jobs: BatchJobs | None,
        keys: KeyAccess | None,
    ) -> None:
        """All that is asked by gRPC."""
        models, clock = self.models, self._clock
        handoff = InstanceHandoff(self.registry, clock)
        add_services(
            rpc,
            InferenceServicer(self.table, models),
            RouterServicer(self.registry, handoff, self.router_id),
            AdminServicer(
                self.router_id,
                Grouping(self.registry, models, handoff, clock),
                self.table,
                self.settings.predictor,
                predictor,
                clock,
                functools.partial(_warnings, jobs),
                None if jobs is None else jobs.database,
                (lambda owner: "") if keys is None else keys.name,
            ),
            TimelineServicer(self.registry, hosts),
            UpstreamServicer(self.router_id, hosts),
        )

    def _stay_names(self) -> Callable[[RoutedSequence], str]:
        numbers = itertools.count(1)
        return lambda sequence: f"{sequence.key}@{self.router_id}.{next(numbers)}"

    def _http_server(
        self,
        models: ServedModels,
        bodies: AnswerBodies,
        keyed: StoredKeys | None,
        jobs: BatchJobs | None,
        runs: ResponseRuns | None,
        telemetry: Telemetry,
        keys: KeyAccess | None,
    ) -> HttpServer | None:
        if not self.settings.http:
            return None
        app = make_app(
            self.table,
            models,
            bodies,
            keyed or RememberedKeys(self._clock),
            jobs,
            int(time.time()),
            telemetry,
            self.feed,
            runs,
        )
        settings = self.settings
        connections = settings.max_connections or shares(limit()).http
        if warning := too_few(connections, settings.max_requests):
            log.warning("few descriptors", reason=warning)
        server = HttpServer(
            CertificateGate(app) if keys is None else KeyGate(app, keys),
            settings.http,
            grace_s=settings.stop_grace_s,
            rule=HTTP_HANDSHAKE if keys is None else None,
            site=sites(settings.allow_host, settings.allow_origin),
            connections=connections,
            connections_per_address=settings.max_connections_per_address,
            shared_port=True,
            around=MessageErrors,
        )
        export_connections(telemetry, server)
        return server

    async def _load(self, rpc: RpcServer) -> None:
        try:
            await self.models.load()
        except BaseException:
            # In order: else gRPC has more to say than the one sentence that ends this process.
            await rpc.stop(0.0)
            raise

    async def _report_health(self, rpc: RpcServer, changed: Notifier) -> None:
        """Health follows the instances: without any, requests only wait."""
        serving = False
        while True:
            noted = changed.next()
            if self.models.ready != serving:
                serving = not serving
                await rpc.set_serving(serving)
            await noted.wait()

    async def _stop(
        self,
        lifecycle: Lifecycle,
        rpc: RpcServer,
        http: HttpServer | None,
        serving_http: asyncio.Task[None] | None,
        keyed: StoredKeys | None,
    ) -> None:
        """Leave as soon as nothing is in flight; what is then still under way is told so, not cut."""
        succeeded = lifecycle.succeeded
        grace_s = self.settings.drain_s if succeeded else self.settings.stop_grace_s
        log.info("stopping", unfinished=len(self.table), succeeded=succeeded)
        self.feed.close()
        if http is not None:
            http.leave()
        # gRPC refuses new calls at once, and says so to its clients, which call the successor.
        rpc_stopping = asyncio.create_task(rpc.stop(grace_s + LAST_WORDS_S))
        if not succeeded:
            self.table.close()
        elif http is not None:
            # Nobody is refused: what comes is answered until there is no connection left over which it could.
            await asyncio.sleep(LINGER_S)
            await http.emptied(grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.table.drained()
        self.table.close()
        if keyed is not None:
            await keyed.save()
        # Whoever still waits will ask another router; here nobody must compute for nobody.
        self.table.fail_all(UnavailableError("this router stops before the answer is complete; ask again"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self.table.drained()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.registry.close(CANCEL_GRACE_S))
            group.create_task(rpc.stop(0))
            if http is not None and serving_http is not None:
                http.stop(grace_s=LAST_WORDS_S)
                group.create_task(_ended(serving_http))
        await asyncio.wait([rpc_stopping])


@contextlib.asynccontextmanager
async def _closed_at_the_end(models: ServedModels) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await models.close()


def _warnings(jobs: BatchJobs | None) -> list[str]:
    return [] if jobs is None or not jobs.database.trouble else [jobs.database.trouble]


def _response_limits(settings: RouterSettings, quotas: Quotas) -> ResponseLimits:
    return ResponseLimits(
        max_bytes=settings.responses_max_bytes,
        max_count=settings.responses_max_count,
        lifetime_s=round(settings.responses_expire_days * 86_400),
        unfinished=settings.responses_background,
        unfinished_of_one=settings.responses_background_per_key,
        held_bytes=settings.responses_background_bytes,
        quotas=quotas,
    )


async def _first(text: asyncio.Future[TextPort], stopping: asyncio.Event) -> None:
    """Return when the tokenizer is there, or nobody wants it any more."""
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        either: list[asyncio.Future[Any]] = [text, stopped]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])

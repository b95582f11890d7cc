"""The maker of a router's models, each with a scheduler of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from router.autoscaling.fleet import Fleet
from router.autoscaling.provisioner import connect_provisioner
from router.instances.dispatcher import Dispatcher, WaitingRules
from router.instances.sequence import PrefixKeys, RoutedSequence
from router.models.model import ServedModel
from router.requests.attainment import AttainmentRecord, PromiseMeter
from router.requests.meter import Meters
from router.requests.text_port import TextPort
from router.scheduler.mitosis import Bounds
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler, SharedRoom
from router.scheduler.slo import SloClasses, SloTarget
from router.telemetry import ModelMetrics, RequestMetrics
from tidepipe_common.notifier import Notifier
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.telemetry.traces import Traces


class ModelMaker:
    """What models have in common: how many requests may wait in all, the names of macro instances, and the
    router's settings. The first one that it makes is the router's own."""

    def __init__(
        self,
        settings: RouterSettings,
        name_stay: Callable[[RoutedSequence], str],
        metrics: RequestMetrics,
        record: AttainmentRecord,
        changed: Notifier,
        clock: Callable[[], float],
        traces: Traces,
    ) -> None:
        self._settings = settings
        self._name_stay = name_stay
        self._metrics = metrics
        self._record = record
        self._changed = changed
        self._clock = clock
        self._traces = traces
        self._room = SharedRoom(settings.max_pending)
        self._main: ServedModel | None = None

    def __call__(self, names: Sequence[str], text: asyncio.Future[TextPort]) -> ServedModel:
        """A model with these names, without instances."""
        settings, main = self._settings, self._main
        routing = settings.routing if main is None else main.dispatcher.scheduler.policy_name
        bounds = Bounds(settings.macro_min, settings.macro_max)
        target = SloTarget(settings.ttft_ms / 1000, settings.tpot_ms / 1000)
        dispatcher = Dispatcher(
            RoutingScheduler(
                OverallConfig(
                    routing, bounds, settings.max_pending, prefill_instances=settings.prefill_instances
                ),
                self._room,
            ),
            WaitingRules(SloClasses({"default": target}, "default"), settings.patience_s),
            self._name_stay,
            self._clock,
            self._changed,
            self._traces,
            what=names[0],
        )
        directory = dispatcher.directory
        fixed = settings.provisioner if main is None else ""
        fleet = Fleet(
            dispatcher,
            directory,
            connect_provisioner(fixed) if fixed else None,
            self._clock,
            target,
            connect=None if fixed else connect_provisioner,
            model="" if main is None else names[0],
            start_s=settings.scaling_start_s,
        )
        promised = PromiseMeter(self._record, lambda: model.target)
        model = ServedModel(
            names,
            text,
            dispatcher,
            fleet,
            PrefixKeys(lambda: directory.block_size, share=settings.share_prefixes),
            Meters(ModelMetrics(self._metrics, names[0]), promised),
            target,
        )
        self._main = main or model
        return model

"""The predictor's process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from predictor.api.servicer import PredictorServicer
from predictor.evaluation.champion import Champion
from predictor.learning import Learning
from predictor.signals import SignalHeads
from predictor.telemetry import predictor_metrics
from predictor.versions import ModelVersions
from tidepipe.v1 import predictor_pb2, predictor_pb2_grpc
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service, settings_or_exit
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.predictor import PredictorSettings
from tidepipe_common.telemetry.listener import serve_metrics
from tidepipe_common.telemetry.telemetry import Telemetry

STOP_GRACE_S = 2.0


async def serve(settings: PredictorSettings, state: Path, lifecycle: Lifecycle) -> None:
    """Serve until told to stop."""
    telemetry = Telemetry()
    rpc = RpcServer(settings.listen, telemetry=telemetry)
    champion = Champion(settings.window)
    learning = Learning(champion, ModelVersions(state), settings.train_after)
    await learning.restore(settings.model)
    heads = SignalHeads(champion, state, settings.signal_samples, settings.train_after)
    await heads.restore()
    servicer = PredictorServicer(champion, learning, heads)
    telemetry.at_scrape(lambda: predictor_metrics(servicer))
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(servicer, rpc.server)
    address = await rpc.start([predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]])
    await rpc.set_serving(True)
    async with (
        serve_metrics(telemetry, settings.listen, settings.metrics_port) as metrics,
        asyncio.TaskGroup() as group,
    ):
        trainers = [
            group.create_task(learning.run(), name="learning"),
            group.create_task(heads.run(), name="heads"),
        ]
        lifecycle.announce_ready(address, metrics)
        await lifecycle.stopping.wait()
        for trainer in trainers:
            trainer.cancel()
    await rpc.stop(STOP_GRACE_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    settings = settings_or_exit(PredictorSettings, arguments)
    with tempfile.TemporaryDirectory(prefix="tidepipe-predictor-") as temporary:
        state = settings.state or Path(temporary)
        return run_service(
            "predictor",
            lambda lifecycle: serve(settings, state, lifecycle),
            log_level=settings.log_level,
            credentials=settings.credentials,
        )

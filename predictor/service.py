"""The predictor's process."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from predictor.api.servicer import PredictorServicer
from predictor.evaluation.champion import Champion
from predictor.evaluation.running_quantile import DEFAULT_WINDOW, MIN_OBSERVATIONS
from predictor.learning import FIRST_AFTER, Learning
from predictor.telemetry import predictor_metrics
from predictor.training import LEAST_ANSWERS
from predictor.versions import ModelVersions
from tidepipe.v1 import predictor_pb2, predictor_pb2_grpc
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.credentials import add_security_options, from_options
from tidepipe_common.telemetry.listener import add_metrics_option, serve_metrics
from tidepipe_common.telemetry.telemetry import Telemetry

STOP_GRACE_S = 2.0


async def serve(options: argparse.Namespace, state: Path, lifecycle: Lifecycle) -> None:
    """Serve until told to stop."""
    telemetry = Telemetry()
    rpc = RpcServer(options.listen, telemetry=telemetry)
    champion = Champion(options.window)
    learning = Learning(champion, ModelVersions(state), options.train_after)
    await learning.restore(options.model)
    servicer = PredictorServicer(champion, learning)
    telemetry.at_scrape(lambda: predictor_metrics(servicer))
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(servicer, rpc.server)
    address = await rpc.start([predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]])
    await rpc.set_serving(True)
    async with (
        serve_metrics(telemetry, options.listen, options.metrics_port) as metrics,
        asyncio.TaskGroup() as group,
    ):
        trainer = group.create_task(learning.run(), name="learning")
        lifecycle.announce_ready(address, metrics)
        await lifecycle.stopping.wait()
        trainer.cancel()
    await rpc.stop(STOP_GRACE_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="predictor", description="Predicts how long answers will be.")
    parser.add_argument(
        "--listen", required=True, metavar="HOST:PORT", help="gRPC address; port 0: a free one"
    )
    parser.add_argument(
        "--window", type=_window, default=DEFAULT_WINDOW, metavar="N", help="newest observations kept"
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=None,
        metavar="DIR",
        help="trained model to begin with",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=None,
        metavar="DIR",
        help="models learnt here; they survive a restart. Default: a temporary folder",
    )
    parser.add_argument(
        "--train-after",
        type=_train_after,
        default=FIRST_AFTER,
        metavar="N",
        help="answers before the first training beside the service",
    )
    add_metrics_option(parser)
    add_security_options(parser)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tidepipe-predictor-") as temporary:
        state = options.state or Path(temporary)
        return run_service(
            "predictor",
            lambda lifecycle: serve(options, state, lifecycle),
            log_level=options.log_level,
            credentials=from_options(options),
        )


def _train_after(text: str) -> int:
    value = int(text)
    # Half of them are held back.
    if value < 2 * LEAST_ANSWERS:
        raise argparse.ArgumentTypeError(f"must be at least {2 * LEAST_ANSWERS}")
    return value


def _window(text: str) -> int:
    value = int(text)
    if value < MIN_OBSERVATIONS:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_OBSERVATIONS}")
    return value

"""The predictor's process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.rpc.lifecycle import Lifecycle, run_service
from common.rpc.server import RpcServer
from common.telemetry import Telemetry
from common.telemetry.listener import add_metrics_option, serve_metrics
from predictor.core.running_quantile import DEFAULT_WINDOW, MIN_OBSERVATIONS, RunningQuantile
from predictor.edge import PredictorServicer
from predictor.telemetry import predictor_metrics
from tidepipe.v1 import predictor_pb2, predictor_pb2_grpc

STOP_GRACE_S = 2.0


async def serve(listen: str, window: int, metrics_port: int | None, lifecycle: Lifecycle) -> None:
    """Serve until told to stop."""
    telemetry = Telemetry()
    rpc = RpcServer(listen, telemetry=telemetry)
    servicer = PredictorServicer(RunningQuantile(window))
    telemetry.at_scrape(lambda: predictor_metrics(servicer))
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(servicer, rpc.server)
    address = await rpc.start([predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"]])
    await rpc.set_serving(True)
    async with serve_metrics(telemetry, listen, metrics_port) as metrics:
        lifecycle.announce_ready(address, metrics)
        await lifecycle.stopping.wait()
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
    add_metrics_option(parser)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args(arguments)
    return run_service(
        "predictor",
        lambda lifecycle: serve(options.listen, options.window, options.metrics_port, lifecycle),
        log_level=options.log_level,
    )


def _window(text: str) -> int:
    value = int(text)
    if value < MIN_OBSERVATIONS:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_OBSERVATIONS}")
    return value

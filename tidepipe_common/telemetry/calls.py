"""What every gRPC server counts, under the names that go-grpc-prometheus made common."""

from __future__ import annotations

from tidepipe_common.telemetry.buckets import RPC_S
from tidepipe_common.telemetry.telemetry import Telemetry


class CallMeter:
    """Calls by service, method and status, and how long they took."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._handled = telemetry.counter(
            "grpc_server_handled",
            "Calls that have ended, by status.",
            ("grpc_service", "grpc_method", "grpc_code"),
        )
        self._seconds = telemetry.histogram(
            "grpc_server_handling_seconds",
            "From a call's arrival to its end, a stream's whole life.",
            RPC_S,
            ("grpc_service", "grpc_method"),
        )

    def handled(self, method: str, code: str, seconds: float) -> None:
        """A call of `/package.Service/Method` has ended. Methods are those that the server has: few."""
        _, service, name = method.split("/", 2)
        self._handled.labels(service, name, code).inc()
        self._seconds.labels(service, name).observe(seconds)

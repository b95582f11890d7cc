"""A gRPC server with what every TidePipe service has: health, reflection, size limits, clear errors."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tidepipe_common.descriptors import limit, shares
from tidepipe_common.errors import ConfigError
from tidepipe_common.limits import CALL_BYTES, MESSAGE_BYTES
from tidepipe_common.rpc.guard import AccessGuard
from tidepipe_common.rpc.health_socket import serve_health
from tidepipe_common.rpc.interceptor import CallInterceptor
from tidepipe_common.rpc.transport import server_credentials
from tidepipe_common.security.credentials import Credentials
from tidepipe_common.security.key_access import KeyAccess
from tidepipe_common.security.process import own
from tidepipe_common.telemetry.calls import CallMeter
from tidepipe_common.telemetry.telemetry import Telemetry

MAX_METADATA_BYTES = 16 * 1024
HANDSHAKE_MS = 10_000
MAX_STREAMS = 8192
"""Of one connection: more than requests that a router accepts, and less than what would drown it."""
IDLE_MS = 600_000
"""A connection without a call is closed then, gracefully; channels open another one when they need it. None
is closed for its age: sessions between services last as long as they do."""
IDENTITY_ONLY = 1
"""No compressed messages: their size is known only when they are whole again."""


class RpcServer:
    """Owns a grpc.aio server. Register servicers on `server`, then `start`."""

    def __init__(
        self,
        listen: str,
        *,
        max_message_bytes: int = CALL_BYTES,
        telemetry: Telemetry | None = None,
        credentials: Credentials | None = None,
        keys: KeyAccess | None = None,
        shared_port: bool = False,
    ) -> None:
        """listen: HOST:PORT; port 0 picks a free one. max_message_bytes: of what comes in.

        telemetry: counts calls.

        shared_port: a successor may listen beside it.

        credentials: None for those of this process. keys: API keys that open services for clients.
        """
        self._listen = listen
        self._credentials = credentials or own()
        guard = AccessGuard(self._credentials, keys) if self._credentials.asks else None
        self.server = grpc.aio.server(
            interceptors=[CallInterceptor(guard, CallMeter(telemetry) if telemetry else None)],
            options=[
                # Else two processes could share a port and a misconfigured one would go unnoticed.
                ("grpc.so_reuseport", int(shared_port)),
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max(max_message_bytes, MESSAGE_BYTES)),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.max_allowed_incoming_connections", shares(limit()).rpc),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._names: list[str] = []
        self._serving = False
        self._open = contextlib.AsyncExitStack()
        self.address = listen

    async def start(self, services: Sequence[ServiceDescriptor]) -> str:
        """Bind and serve; returns HOST:PORT.

        ConfigError if the port cannot be had, or must not be listened on without TLS.

        Services report NOT_SERVING until `set_serving`.
        """
        self._names = [service.full_name for service in services]
        await self.set_serving(False)
        reflection.enable_server_reflection(
            (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server
        )
        self._credentials.check_listen(self._listen)
        tls = server_credentials(self._credentials)
        host = self._listen.rpartition(":")[0]
        try:
            if tls is None:
                port = self.server.add_insecure_port(self._listen)
            else:
                port = self.server.add_secure_port(self._listen, tls)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {self._listen}: the port is in use or not allowed; "
                "choose another one (port 0 picks a free one)"
            ) from error
        await self._open.enter_async_context(serve_health(lambda: self._serving))
        await self.server.start()
        self.address = f"{host}:{port}"
        return self.address

    async def set_serving(self, serving: bool) -> None:
        """Report health of the process as a whole and of each service."""
        self._serving = serving
        state = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._names):
            await self._health.set(name, state)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight `grace_s` seconds, then end them."""
        self._serving = False
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
        await self._open.aclose()

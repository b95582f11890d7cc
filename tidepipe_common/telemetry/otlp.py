"""Traces that go to a collector of OpenTelemetry, by OTLP over gRPC.

OpenTelemetry is imported only where a collector is named. Its own environment variables say the rest:
OTEL_TRACES_SAMPLER (what is recorded: all, unless the caller says otherwise), OTEL_RESOURCE_ATTRIBUTES,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE and so on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from tidepipe_common.errors import ConfigError
from tidepipe_common.telemetry.traces import NO_SPAN, NO_TRACES, Attribute, Kind, Span, Traces, trace_headers
from tidepipe_common.version import tidepipe_version

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

EXPORT_S = 3.0
"""For one message to the collector; while it is away spans are dropped, requests go on."""
LAST_EXPORT_S = 2.0
"""For what is left when the process ends."""


@contextlib.asynccontextmanager
async def open_traces(endpoint: str, service: str, instance: str) -> AsyncIterator[Traces]:
    """Traces of a service, until left. endpoint: http(s)://HOST:PORT of a collector; empty: none are taken.

    Raises ConfigError if OpenTelemetry is not installed.
    """
    if not endpoint:
        yield NO_TRACES
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"--otlp needs OpenTelemetry, which is not installed here ({error}): pip install 'tidepipe[otlp]'"
        ) from None
    version = tidepipe_version()
    about = {
        "service.name": f"tidepipe-{service}",
        "service.instance.id": instance,
        "service.version": version,
    }
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    # Its queue is bounded (2,048 spans), and it sends from a thread of its own.
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http:"), timeout=EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield _OtelTraces(provider.get_tracer("tidepipe", version))
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_EXPORT_S):
                await asyncio.to_thread(provider.shutdown)


class _OtelTraces:
    def __init__(self, tracer: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()
        self._kinds: dict[Kind, Any] = {
            "server": SpanKind.SERVER,
            "client": SpanKind.CLIENT,
            "internal": SpanKind.INTERNAL,
        }

    def begin(
        self,
        name: str,
        parent: str = "",
        attributes: Mapping[str, Attribute] | None = None,
        kind: Kind = "internal",
        *,
        ago_s: float = 0.0,
    ) -> Span:
        """See Traces."""
        from opentelemetry.context import Context

        began = None if not ago_s else time.time_ns() - int(ago_s * 1e9)
        # An empty context: what may stand in a variable of this task is none of the request's.
        around = self._propagator.extract(trace_headers(parent), Context())
        span = self._tracer.start_span(
            name, around, self._kinds[kind], dict(attributes or {}), start_time=began
        )
        return _OtelSpan(span, self._propagator) if span.is_recording() else NO_SPAN


class _OtelSpan:
    def __init__(self, span: OtelSpan, propagator: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._span = span
        carrier: dict[str, str] = {}
        propagator.inject(carrier, set_span_in_context(span))
        self.context = " ".join(carrier[name] for name in ("traceparent", "tracestate") if carrier.get(name))

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        """See Span."""
        self._span.set_attributes(dict(attributes))

    def event(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> None:
        """See Span."""
        self._span.add_event(name, dict(attributes or {}))

    def end(self, error: str = "") -> None:
        """See Span."""
        if error and self._span.is_recording():
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        if self._span.is_recording():
            self._span.end()

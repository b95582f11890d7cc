"""The span that a caller's request is made within, where the caller uses OpenTelemetry."""

from __future__ import annotations

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """What a call carries of it, W3C's `traceparent` and `tracestate`; nothing if there is none.

    The SDK does not depend on OpenTelemetry: who has a span has imported it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())

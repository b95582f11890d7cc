"""Spans of requests: what each service on a request's way did for it, for a collector of OpenTelemetry.

Services begin spans with these; who exports them is `otlp.py`. Without a collector nothing is recorded. A
span's context travels as one text to whom it calls: a W3C `traceparent`, and behind a blank the `tracestate`,
if there is one (https://www.w3.org/TR/trace-context/). What is asked and answered is never part of a span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

Attribute = str | bool | int | float | Sequence[str]
Kind = Literal["server", "client", "internal"]

TRACE_PARENT, TRACE_STATE = "traceparent", "tracestate"
"""Headers of HTTP, and metadata of gRPC."""
MAX_PARENT_CHARACTERS, MAX_STATE_CHARACTERS = 128, 512
"""The second is the least that the standard asks to pass on. What is longer is left out."""
MAX_CONTEXT_CHARACTERS = MAX_PARENT_CHARACTERS + 1 + MAX_STATE_CHARACTERS


class Span(Protocol):
    """Something that takes its time. Ends once; whatever is said afterwards is lost."""

    @property
    def context(self) -> str:
        """What those that it calls begin theirs with; empty if it is not recorded."""
        ...

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        """Say more of it."""
        ...

    def event(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> None:
        """Say that something happened now."""
        ...

    def end(self, error: str = "") -> None:
        """It is over. error: why it failed."""
        ...


class Traces(Protocol):
    """Where spans begin."""

    def begin(
        self,
        name: str,
        parent: str = "",
        attributes: Mapping[str, Attribute] | None = None,
        kind: Kind = "internal",
        *,
        ago_s: float = 0.0,
    ) -> Span:
        """A span from now on, or since `ago_s` seconds. parent: a context; empty or no context: none."""
        ...


class _NoSpan:
    context = ""

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        pass

    def event(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> None:
        pass

    def end(self, error: str = "") -> None:
        pass


class _NoTraces:
    def begin(
        self,
        name: str,
        parent: str = "",
        attributes: Mapping[str, Attribute] | None = None,
        kind: Kind = "internal",
        *,
        ago_s: float = 0.0,
    ) -> Span:
        return NO_SPAN


NO_SPAN: Span = _NoSpan()
NO_TRACES: Traces = _NoTraces()


def trace_context(headers: Mapping[str, str]) -> str:
    """The context that a caller sent; empty if it sent none that can be one."""
    parent, state = headers.get(TRACE_PARENT, ""), headers.get(TRACE_STATE, "")
    if not parent or len(parent) > MAX_PARENT_CHARACTERS or not parent.isascii() or " " in parent:
        return ""
    if not state or len(state) > MAX_STATE_CHARACTERS or not state.isascii():
        return parent
    return f"{parent} {state}"


def trace_headers(context: str) -> dict[str, str]:
    """The same as headers, for a call of somebody else's service."""
    parent, _, state = context.partition(" ")
    return ({TRACE_PARENT: parent} if parent else {}) | ({TRACE_STATE: state} if state else {})

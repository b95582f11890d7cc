"""One trace through a real cluster: the client's span, the router's, the controller's, and each stage's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from openai import AsyncOpenAI
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

TRACE, UNSAMPLED, SDK = "0af7651916cd43dd8448eb211c80319c", 32 * "1", 32 * "2"
CALLER = "b7ad6b7169203331"


class Collector(pb_grpc.TraceServiceServicer):
    """Keeps what it is sent, as (name of the service, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.address = ""

    def Export(  # noqa: N802
        self, request: pb.ExportTraceServiceRequest, context: object
    ) -> pb.ExportTraceServiceResponse:
        for group in request.resource_spans:
            about = {one.key: one.value.string_value for one in group.resource.attributes}
            self.spans += [
                (about["service.name"], span) for scope in group.scope_spans for span in scope.spans
            ]
        return pb.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_TraceServiceServicer_to_server(found, server)
    found.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(None).wait()


def _said(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


async def test_a_request_is_one_trace_from_its_client_to_the_stages(
    model_path: Path, collector: Collector
) -> None:
    config = ClusterConfig(model=str(model_path), stages=2, executor="emulated", otlp=collector.address)
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}
    async with LocalCluster(config) as cluster:
        async with AsyncOpenAI(base_url=f"http://{cluster.http_address}/v1", api_key="none") as openai:
            await openai.completions.create(model="", prompt="a", max_tokens=3, extra_headers=headers)
            unsampled = {"traceparent": f"00-{UNSAMPLED}-{CALLER}-00"}
            await openai.completions.create(model="", prompt="a", max_tokens=3, extra_headers=unsampled)
        async with AsyncClient(cluster.grpc_address) as client:
            parent = SpanContext(int(SDK, 16), int(CALLER, 16), is_remote=False, trace_flags=TraceFlags(1))
            with use_span(NonRecordingSpan(parent)):
                await client.generate("a", max_tokens=2)
    # The cluster has ended, and what it had to say was sent.

    ours = [(service, span) for service, span in collector.spans if span.trace_id.hex() == TRACE]
    [request] = [span for _, span in ours if span.name == "text_completion"]
    [stay] = [span for _, span in ours if span.name == "run on instance-0"]
    [sequence] = [span for service, span in ours if service == "tidepipe-controller"]
    stages = [span for service, span in ours if service == "tidepipe-stage-worker"]
    assert request.parent_span_id.hex() == CALLER and request.trace_state == "vendor=1"
    assert stay.parent_span_id == request.span_id
    assert sequence.parent_span_id == stay.span_id
    assert sorted(span.name for span in stages) == ["stage 0", "stage 1"]
    assert all(span.parent_span_id == sequence.span_id for span in stages)
    assert [_said(span)["tidepipe.tokens"] for span in stages] == [1 + 2, 1 + 2]
    said = _said(request)
    assert said["gen_ai.usage.input_tokens"] == 1 and said["gen_ai.usage.output_tokens"] == 3
    assert [event.name for event in sequence.events] == ["computed", "first token"]
    # What its caller does not record nobody does; the SDK tells of the span that its caller is in.
    assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE, SDK}

"""What the span of a request says, in the words of OpenTelemetry's conventions for generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/. Nothing of prompts and answers themselves.
"""

from __future__ import annotations

from tidepipe_common.telemetry.traces import Attribute, Span, Traces
from tidepipe_common.types.request import GenerationRequest, Usage
from tidepipe_common.types.sampling import FinishReason

PROVIDER = "tidepipe"


def request_span(traces: Traces, request: GenerationRequest) -> Span:
    """The span of a request that has just come."""
    sampling = request.sampling
    operation = "chat" if request.is_chat else "text_completion"
    attributes: dict[str, Attribute] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.stream": request.stream,
        "gen_ai.output.type": "json" if sampling.structure is not None else "text",
        "tidepipe.request.id": request.trace_id or request.request_id,
        "tidepipe.request.background": request.background,
    }
    # Those that have a "not set" of their own are left out where they are not.
    optional: dict[str, Attribute | None] = {
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.seed": None if sampling.seed is None else str(sampling.seed),
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
        "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
        "gen_ai.request.choice.count": sampling.n if sampling.n > 1 else None,
    }
    attributes |= {name: value for name, value in optional.items() if value is not None}
    name = f"{operation} {request.model}" if request.model else operation
    return traces.begin(name, request.trace_context, attributes, "server")


def end_span(span: Span, usage: Usage, reasons: list[FinishReason | None], failure: Exception | None) -> None:
    """The request is over. reasons: of its answers. failure: what its listeners were told instead."""
    outcome: dict[str, Attribute] = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "tidepipe.preemptions": usage.preemptions,
    }
    if told := [reason.value for reason in reasons if reason is not None]:
        outcome["gen_ai.response.finish_reasons"] = told
    if usage.output_tokens:
        outcome["gen_ai.response.time_to_first_chunk"] = usage.ttft_ms / 1000
    if failure is not None:
        outcome["error.type"] = type(failure).__name__
    span.note(outcome)
    span.end("" if failure is None else str(failure))

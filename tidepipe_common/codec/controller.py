"""Sequences that one service hands to another, their news, what steps cost and what an instance holds:
protobuf <-> domain (controller.proto)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import prompt_pb2
from tidepipe_common.codec.kv_transfer import check_handle, handle_from_wire, handle_to_wire
from tidepipe_common.codec.numbers import LARGEST, rising, strange_number
from tidepipe_common.codec.prompt import prompt_to_wire
from tidepipe_common.codec.sampling import (
    check_carried,
    finish_from_wire,
    finish_to_wire,
    logprobs_from_wire,
    logprobs_to_wire,
    prompt_logprobs_from_wire,
    prompt_logprobs_to_wire,
    sampling_to_wire,
)
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.latency.work import StepCosts
from tidepipe_common.lengths.prompt import DENSE, MAX_BUCKETS, PromptFeatures
from tidepipe_common.limits import (
    MAX_HANDED_OVER,
    MAX_PRIORITY,
    MAX_SEQUENCE_ID_CHARACTERS,
    check_characters,
    check_count,
)
from tidepipe_common.prefix import KEY_BYTES
from tidepipe_common.telemetry.traces import MAX_CONTEXT_CHARACTERS
from tidepipe_common.text.text import quoted
from tidepipe_common.types.adapter import is_fingerprint
from tidepipe_common.types.holdings import PrefixHoldings
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.results import SequenceEnd, SequenceUpdate
from tidepipe_common.types.sampling import SamplingParams


def spec_to_wire(
    sequence_id: str,
    prompt: Sequence[int],
    output: Sequence[int],
    sampling: SamplingParams,
    features: PromptFeatures,
    *,
    ttft_s: float,
    tpot_s: float,
    age_s: float,
    piece_gap_s: float,
    tenant: str,
    prefix_root: bytes,
    trace_context: str = "",
    priority: int = 0,
    background: bool = False,
    adapter: str = "",
    kv: KvHandle | None = None,
    passes_on: bool = False,
) -> pb.SequenceSpec:
    """What an instance needs to continue a sequence from where the router stands with it.

    output: what it has so far. ttft_s, tpot_s: its targets. age_s: since it came to the first router.
    prefix_root: who has the same shares KV blocks. trace_context: the span of its stay.
    priority, background: see GenerationRequest. adapter: its fingerprint. kv: of its blocks elsewhere.
    passes_on: its blocks are to be announced, for it will go on elsewhere.
    """
    return pb.SequenceSpec(
        sequence_id=sequence_id,
        prompt_token_ids=prompt,
        output_token_ids=output,
        # Stop strings and n are the router's business.
        sampling=sampling_to_wire(replace(sampling, stop=(), n=1)),
        prompt_features=prompt_to_wire(features),
        ttft_ms=1000 * ttft_s,
        tpot_ms=1000 * tpot_s,
        age_ms=1000 * age_s,
        piece_gap_ms=int(1000 * piece_gap_s),
        tenant=tenant,
        prefix_root=prefix_root,
        trace_context=trace_context,
        priority=priority,
        background=background,
        adapter=adapter,
        kv=None if kv is None else handle_to_wire(kv),
        passes_on=passes_on,
    )


def count_sequences(request: pb.SubmitSequencesRequest) -> None:
    """Raise InvalidRequestError if more are handed over than a message has room for."""
    check_count("sequences", len(request.sequences), MAX_HANDED_OVER, "sequences")


def check_spec(spec: pb.SequenceSpec) -> None:
    """Raise InvalidRequestError if it carries more than it may, so that it fails, and nobody with it."""
    check_characters("sequence_id", spec.sequence_id, MAX_SEQUENCE_ID_CHARACTERS)
    check_carried(spec.sampling)
    if not -MAX_PRIORITY <= spec.priority <= MAX_PRIORITY:
        raise InvalidRequestError(f"priority {spec.priority} is out of range", "priority")
    for name in ("ttft_ms", "tpot_ms", "age_ms"):
        if not -LARGEST <= (number := getattr(spec, name)) <= LARGEST:
            raise InvalidRequestError(f"{name} {number:g} is out of range", name)
    check_characters("trace_context", spec.trace_context, MAX_CONTEXT_CHARACTERS)
    _check_owner(spec)
    if spec.HasField("kv"):
        check_handle(spec.kv)
    check_features(spec.prompt_features)


def check_values(
    prompt: Sequence[int], output: Sequence[int], sampling: SamplingParams, vocab_size: int
) -> None:
    """Raise InvalidRequestError if a sequence names tokens that its model has not, or cannot be sampled so.

    A stage that is told of it ends the step, and with it everybody's epoch. vocab_size: 0: not known.
    """
    sampling.check()
    if not vocab_size:
        return
    sampling.check_vocabulary(vocab_size)
    marks = sampling.thought
    named = {
        "prompt_token_ids": prompt,
        "output_token_ids": output,
        "thought": () if marks is None else (*marks.begins, *marks.ends, *marks.forced),
    }
    for name, ids in named.items():
        if (largest := max(ids, default=0)) >= vocab_size:
            raise InvalidRequestError(
                f"{name} has token id {largest}, but the vocabulary ends at {vocab_size - 1}", name
            )


def check_loan(request: pb.LendPrefixRequest) -> None:
    """Raise InvalidRequestError if it carries more than it may."""
    check_characters("loan_id", request.loan_id, MAX_SEQUENCE_ID_CHARACTERS)
    _check_owner(request)


def check_offer(request: pb.FetchPrefixRequest) -> None:
    """Raise InvalidRequestError if it carries more than it may."""
    _check_owner(request)
    check_handle(request.kv)


def _check_owner(message: pb.SequenceSpec | pb.LendPrefixRequest | pb.FetchPrefixRequest) -> None:
    if len(message.prefix_root) not in (0, KEY_BYTES):
        raise InvalidRequestError(
            f"prefix_root must have {KEY_BYTES} bytes or none, got {len(message.prefix_root)}", "prefix_root"
        )
    if message.adapter and not is_fingerprint(message.adapter):
        raise InvalidRequestError(f"adapter {quoted(message.adapter)} is no fingerprint", "adapter")


def check_features(message: prompt_pb2.PromptFeatures) -> None:
    """Raise InvalidRequestError if a prompt is told in more numbers than there are."""
    check_count("dense", len(message.dense), 4 * len(DENSE), "numbers")
    check_count("buckets", len(message.buckets), 4 * MAX_BUCKETS, "numbers")


_SIGNED = ("window_left_s", "mean_s", "low_s", "low_latest_s")
"""What a report tells of the future, which may be past."""


def check_report(report: pb.InstanceReport) -> None:
    """Raise InvalidRequestError if it tells what cannot be: routing reckons with all of it, for everybody."""
    costs = report.costs
    sizes = costs.linear_tokens
    if fault := strange_number(report, _SIGNED):
        raise InvalidRequestError(f"the instance reports {fault}, which cannot be")
    if report.serving and not (costs.stages and costs.step_tokens):
        raise InvalidRequestError(
            f"the instance reports {costs.stages} stages and steps of {costs.step_tokens} tokens, which "
            "cannot be"
        )
    if len(sizes) != len(costs.linear_s) or 0 in sizes or not rising(sizes):
        raise InvalidRequestError("the instance reports times of steps that fit no sizes of them")


def costs_to_wire(costs: StepCosts) -> pb.StepCosts:
    """Domain to protobuf."""
    return pb.StepCosts(
        stages=costs.stages,
        step_tokens=costs.step_tokens,
        linear_tokens=costs.linear_tokens,
        linear_s=costs.linear_s,
        pair_s=costs.pair_s,
        transfer_token_s=costs.transfer_token_s,
        kv_token_s=costs.kv_token_s,
    )


def costs_from_wire(costs: pb.StepCosts) -> StepCosts:
    """Protobuf to domain."""
    return StepCosts(
        stages=costs.stages,
        step_tokens=costs.step_tokens,
        linear_tokens=tuple(costs.linear_tokens),
        linear_s=tuple(costs.linear_s),
        pair_s=costs.pair_s,
        transfer_token_s=costs.transfer_token_s,
        kv_token_s=costs.kv_token_s,
    )


def holdings_to_wire(holdings: PrefixHoldings) -> pb.PrefixHoldings:
    """Domain to protobuf."""
    return pb.PrefixHoldings(
        version=holdings.version,
        whole=holdings.whole,
        block_size=holdings.block_size,
        stride=holdings.stride,
        added=holdings.added,
        removed=holdings.removed,
    )


def holdings_from_wire(message: pb.PrefixHoldings) -> PrefixHoldings:
    """Protobuf to domain."""
    return PrefixHoldings(
        version=message.version,
        whole=message.whole,
        block_size=message.block_size,
        stride=message.stride,
        added=message.added,
        removed=message.removed,
    )


def update_to_wire(update: SequenceUpdate) -> pb.SequenceUpdate:
    """Domain to protobuf."""
    message = pb.SequenceUpdate(
        sequence_id=update.sequence_id,
        token_offset=update.token_offset,
        token_ids=update.token_ids,
        logprobs=logprobs_to_wire(update.logprobs),
        cached_tokens=update.cached_tokens,
        prompt_logprobs=prompt_logprobs_to_wire(update.prompt_logprobs),
        vector=update.vector,
    )
    if update.end is not None:
        message.finish_reason = finish_to_wire(update.end.reason)
        message.error = update.end.error
        message.preemptions = update.end.preemptions
        if update.end.fault is not None:
            message.fault = update.end.fault
        if update.end.stop_token is not None:
            message.stop_token_id = update.end.stop_token
        if isinstance(update.end, SequenceEnd) and update.end.kv is not None:
            message.kv.CopyFrom(handle_to_wire(update.end.kv))
    elif update.kv is not None:
        message.kv.CopyFrom(handle_to_wire(update.kv))
    return message


def update_from_wire(message: pb.SequenceUpdate) -> SequenceUpdate:
    """Protobuf to domain."""
    reason = finish_from_wire(message.finish_reason)
    end = None
    kv = handle_from_wire(message.kv) if message.HasField("kv") else None
    if reason is not None:
        end = SequenceEnd(
            message.sequence_id,
            reason,
            message.stop_token_id if message.HasField("stop_token_id") else None,
            message.error,
            message.preemptions,
            message.fault if message.HasField("fault") else None,
            kv,
        )
    return SequenceUpdate(
        message.sequence_id,
        message.token_offset,
        message.token_ids,
        logprobs_from_wire(message.logprobs),
        end,
        message.cached_tokens,
        prompt_logprobs_from_wire(message.prompt_logprobs),
        message.vector,
        kv if reason is None else None,
    )

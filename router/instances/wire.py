"""Sequences and their news: protobuf <-> domain."""

from __future__ import annotations

from dataclasses import replace

from router.instances.placement import Placement
from router.instances.sequence import SequenceNews
from tidepipe.v1 import controller_pb2 as pb
from tidepipe_common.codec.prompt import prompt_to_wire
from tidepipe_common.codec.sampling import finish_from_wire, logprobs_from_wire, sampling_to_wire


def sequence_spec(placement: Placement, now: float) -> pb.SequenceSpec:
    """What the instance needs to continue the sequence from where the router stands."""
    sequence = placement.sequence
    return pb.SequenceSpec(
        sequence_id=placement.placement_id,
        prompt_token_ids=sequence.prompt,
        output_token_ids=sequence.output,
        # Stop strings and n are the router's business.
        sampling=sampling_to_wire(replace(sequence.sampling, stop=(), n=1)),
        prompt_features=prompt_to_wire(sequence.features),
        ttft_ms=1000 * placement.slo.ttft_s,
        tpot_ms=1000 * placement.slo.tpot_s,
        age_ms=1000 * (now - sequence.arrived),
        piece_gap_ms=int(1000 * sequence.piece_gap_s),
        tenant=sequence.tenant,
    )


def position(placement: Placement) -> pb.SequencePosition:
    """Where the router stands with the sequence."""
    return pb.SequencePosition(
        sequence_id=placement.placement_id, output_tokens=len(placement.sequence.output)
    )


def news_from_wire(message: pb.SequenceUpdate) -> SequenceNews:
    """Protobuf to domain."""
    return SequenceNews(
        token_offset=message.token_offset,
        token_ids=message.token_ids,
        logprobs=logprobs_from_wire(message.logprobs),
        finish_reason=finish_from_wire(message.finish_reason),
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        error=message.error,
        preemptions=message.preemptions,
        fault=message.fault if message.HasField("fault") else None,
    )

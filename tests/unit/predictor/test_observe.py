"""What a predictor is told is bounded in bytes, and it keeps numbers of it: thousands of answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from predictor.api.servicer import PredictorServicer
from tidepipe.v1 import predictor_pb2 as pb
from tidepipe.v1 import prompt_pb2
from tidepipe_common.types.length_signal import pack_signal


async def test_large_answers_are_rejected_whatever_makes_them_large() -> None:
    kept: list[pb.Observation] = []
    heads = cast(Any, SimpleNamespace(observe=lambda observations: None))
    servicer = PredictorServicer(cast(Any, None), cast(Any, SimpleNamespace(note=kept.extend)), heads)
    signal = pack_signal([1.0, 2.0])
    features = pb.RequestFeatures(key="k" * 1024, prompt_tokens=3, max_tokens=5, signal=signal, model="m")
    good = pb.Observation(features=features, output_tokens=2)
    long_key, other_version, unknown = pb.Observation(), pb.Observation(), pb.Observation()
    for one in (long_key, other_version, unknown):
        one.CopyFrom(good)
    long_key.features.key = "k" * 1_000_000
    other_version.features.prompt.CopyFrom(prompt_pb2.PromptFeatures(version=99, dense=[0.5] * 10_000))
    unknown.MergeFromString(b"\xfa\x7f" + b"\xa0\x8d\x06" + bytes(100_000))  # a field of a newer contract
    request = pb.ObserveRequest(observations=[long_key, good, other_version, unknown])
    reply = await servicer.Observe(request, cast(Any, None))
    assert (reply.accepted, reply.rejected, len(kept)) == (1, 3, 1)
    # Also of an older controller's, which says the sequence's id, or a newer one's.
    small = pb.Observation()
    small.CopyFrom(good)
    small.MergeFromString(b"\xfa\x7f\x04text")
    await servicer.Observe(pb.ObserveRequest(observations=[small]), cast(Any, None))
    numbers = pb.Observation(features=pb.RequestFeatures(prompt_tokens=3, max_tokens=5), output_tokens=2)
    assert [one.SerializeToString() for one in kept] == 2 * [numbers.SerializeToString()]

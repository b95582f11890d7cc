"""What a sequence may bring when one service hands it to another."""

from __future__ import annotations

from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import prompt_pb2
from tidepipe_common.codec.sampling import check_carried
from tidepipe_common.lengths.prompt import DENSE, MAX_BUCKETS
from tidepipe_common.limits import MAX_SEQUENCE_ID_CHARACTERS, check_characters, check_count


def check_spec(spec: pb.SequenceSpec) -> None:
    """Raise InvalidRequestError if it carries more than it may, so that it fails, and nobody with it."""
    check_characters("sequence_id", spec.sequence_id, MAX_SEQUENCE_ID_CHARACTERS)
    check_carried(spec.sampling)
    check_features(spec.prompt_features)


def check_features(message: prompt_pb2.PromptFeatures) -> None:
    """Raise InvalidRequestError if a prompt is told in more numbers than there are."""
    check_count("dense", len(message.dense), 4 * len(DENSE), "numbers")
    check_count("buckets", len(message.buckets), 4 * MAX_BUCKETS, "numbers")

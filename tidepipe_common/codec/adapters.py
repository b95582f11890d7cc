"""Adapters, as services tell each other of them: protobuf <-> domain (controller.proto)."""

from __future__ import annotations

from collections.abc import Iterable

from tidepipe.v1 import controller_pb2 as pb
from tidepipe_common.errors import IncompatibleError
from tidepipe_common.model_names import check_names
from tidepipe_common.settings.adapters import MAX_ADAPTERS
from tidepipe_common.types.adapter import Adapter, is_fingerprint


def adapters_to_wire(adapters: Iterable[Adapter]) -> list[pb.Adapter]:
    """Domain to protobuf."""
    return [pb.Adapter(name=one.name, fingerprint=one.fingerprint) for one in adapters]


def adapters_from_wire(who: str, messages: Iterable[pb.Adapter]) -> tuple[Adapter, ...]:
    """Protobuf to domain; IncompatibleError, which says of whom, if they cannot be adapters."""
    adapters = tuple(Adapter(one.name, one.fingerprint) for one in messages)
    if len(adapters) > MAX_ADAPTERS:
        raise IncompatibleError(f"{who} has {len(adapters)} adapters; there may be {MAX_ADAPTERS}")
    try:
        for one in adapters:
            check_names([one.name])
    except ValueError as error:
        raise IncompatibleError(f"{who}: the names of its adapters {error}") from None
    if len({one.name for one in adapters}) < len(adapters):
        raise IncompatibleError(f"{who} has two adapters of one name")
    if strange := next((one for one in adapters if not is_fingerprint(one.fingerprint)), None):
        raise IncompatibleError(f"{who}: adapter {strange.name} has no fingerprint")
    return adapters

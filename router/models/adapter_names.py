"""Names of the adapters (LoRA) of one model, and the content that each means."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from tidepipe_common.errors import IncompatibleError
from tidepipe_common.types.adapter import Adapter

MAX_REMEMBERED = 1024
"""Names of one model's adapters, and instances that brought some."""

Brought = Mapping[str, str]
"""Fingerprints by name, of one instance."""


class AdapterNames:
    """A name outlives the instance that brought it, as a model's does: requests wait for it to come back. It
    is forgotten when that instance comes without it, and nobody else has it.
    """

    def __init__(self) -> None:
        self._fingerprints: dict[str, str] = {}
        self._brought: dict[str, Brought] = {}

    @property
    def names(self) -> Collection[str]:
        """All of them."""
        return self._fingerprints.keys()

    def fingerprint(self, name: str | None) -> str:
        """Of the adapter that a request calls so; empty if there is none of that name."""
        return self._fingerprints.get(name, "") if name else ""

    def take(self, instance_id: str, adapters: Iterable[Adapter], others: Iterable[str]) -> None:
        """An instance came. others: those that are there beside it.

        IncompatibleError if one of them has another content under the same name: a request would get the
        one or the other.
        """
        mine = {one.name: one.fingerprint for one in adapters}
        there = [(other, self._brought.get(other, {})) for other in others if other != instance_id]
        for other, theirs in there:
            if different := [name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]]:
                raise IncompatibleError(
                    f"instance {instance_id} has another adapter {min(different)} than instance {other}; "
                    "give it another name, or stop those that have the old one first"
                )
        before = self._brought.pop(instance_id, {})
        held = {name for theirs in self._brought.values() for name in theirs}
        for name in before:
            if name not in mine and name not in held:
                self._fingerprints.pop(name, None)
        self._fingerprints |= mine
        if mine:
            self._brought[instance_id] = mine
        for known in (self._fingerprints, self._brought):
            while len(known) > MAX_REMEMBERED:
                del known[next(iter(known))]

"""Mitosis scaling (EcoServe): which instance belongs to which macro instance, as instances come and go."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from tidepipe_common.errors import ConfigError, NotFoundError
from tidepipe_common.settings.defaults import MACRO_MAX, MACRO_MIN, macro_fault


@dataclass(frozen=True, slots=True)
class Bounds:
    """Instances per macro instance: lower = N_l, upper = N_u."""

    lower: int = MACRO_MIN
    upper: int = MACRO_MAX

    def __post_init__(self) -> None:
        if fault := macro_fault(self.lower, self.upper):
            raise ConfigError(fault)


@dataclass(frozen=True, slots=True)
class Move:
    """An instance changes hands. source or target empty: it comes from, or goes, outside."""

    instance_id: str
    source: str
    target: str


class Mitosis:
    """Groups of instances. Every method returns the moves that make it so; the caller carries them out.

    Expansion: an instance joins the first group with room; if all are full, the last one takes it, exceeds
    N_u and splits off a new group of N_l. Contraction: the smallest group above N_l gives one up; two groups
    that together hold no more than N_u are merged. Sizes count those that stay: one that drains serves
    nobody new, so its group has shrunk when it begins to drain, not when it is gone.
    """

    def __init__(self, bounds: Bounds, numbers: Iterator[int] | None = None) -> None:
        """numbers: of groups to come, shared with others so that each has a name of its own."""
        self.bounds = bounds
        self.groups: dict[str, list[str]] = {}
        self._leaving: set[str] = set()
        self._numbers = numbers or itertools.count(1)

    def home(self, instance_id: str) -> str:
        """The group of an instance; NotFoundError if it is in none."""
        for macro_id, members in self.groups.items():
            if instance_id in members:
                return macro_id
        raise NotFoundError(f"instance {instance_id} belongs to no macro instance")

    def add(self, instance_id: str) -> list[Move]:
        """Expansion by one."""
        if any(instance_id in members for members in self.groups.values()):
            return []
        target = next((g for g in self.groups if len(self.staying(g)) < self.bounds.upper), None)
        if target is None:
            target = next(reversed(self.groups)) if self.groups else self._new_group()
        self.groups[target].append(instance_id)
        moves = [Move(instance_id, "", target)]
        if len(self.staying(target)) > self.bounds.upper:
            moves += self.split(target)
        return moves

    def staying(self, macro_id: str) -> list[str]:
        """The members of a group that are not on their way out."""
        return [one for one in self.groups[macro_id] if one not in self._leaving]

    def leave(self, instance_id: str) -> list[Move]:
        """An instance gets nothing new from now on: the merges that follow. `remove` when it is gone."""
        self.home(instance_id)
        self._leaving.add(instance_id)
        return self._merges()

    def resume(self, instance_id: str) -> list[Move]:
        """It stays after all: the split that follows if its group is too large with it."""
        home = self.home(instance_id)
        self._leaving.discard(instance_id)
        return self.split(home) if len(self.staying(home)) > self.bounds.upper else []

    def candidate(self) -> str | None:
        """The instance that contraction would let go: the newest of the smallest group above N_l.

        With one group left it goes on to the last instance. None if all are on their way out.
        """
        groups = [members for macro_id in self.groups if (members := self.staying(macro_id))]
        if not groups:
            return None
        above = [members for members in groups if len(members) > self.bounds.lower]
        return min(above or groups, key=len)[-1]

    def remove(self, instance_id: str) -> list[Move]:
        """Contraction by this one (it has drained, or is lost), and the merges that follow."""
        source = self.home(instance_id)
        self.groups[source].remove(instance_id)
        self._leaving.discard(instance_id)
        moves = [Move(instance_id, source, "")]
        if not self.groups[source]:
            del self.groups[source]
        return moves + self._merges()

    def split(self, macro_id: str, count: int = 0) -> list[Move]:
        """Split off a new group of `count` (default N_l) instances, the newest ones.

        ConfigError if fewer than one would stay.
        """
        members = self._members(macro_id)
        staying = self.staying(macro_id)
        wanted = count or self.bounds.lower
        if len(staying) < 2:
            raise ConfigError(f"{macro_id} has too few instances for a split: {len(staying)}")
        if not 1 <= wanted < len(staying):
            raise ConfigError(
                f"{macro_id} has {len(staying)} instances: a split takes 1 to {len(staying) - 1} of them, "
                f"not {wanted}"
            )
        target = self._new_group()
        moving = staying[-wanted:]
        members[:] = [one for one in members if one not in moving]
        self.groups[target].extend(moving)
        return [Move(one, macro_id, target) for one in moving]

    def merge(self, into: str, other: str) -> list[Move]:
        """All of `other` joins `into`. ConfigError if they are the same or too many for one."""
        target, source = self._members(into), self._members(other)
        if into == other:
            raise ConfigError(f"{into} cannot be merged with itself")
        together = len(self.staying(into)) + len(self.staying(other))
        if together > self.bounds.upper:
            raise ConfigError(
                f"{into} and {other} have {together} instances together, more than the "
                f"{self.bounds.upper} that one macro instance may have"
            )
        moves = [Move(one, other, into) for one in source]
        target.extend(source)
        del self.groups[other]
        return moves

    def move(self, instance_id: str, target: str) -> list[Move]:
        """By hand: to another group, within the upper bound."""
        source = self.home(instance_id)
        members = self._members(target)
        if source == target:
            return []
        if len(self.staying(target)) >= self.bounds.upper:
            raise ConfigError(
                f"{target} has {self.bounds.upper} instances, as many as a macro instance may have"
            )
        self.groups[source].remove(instance_id)
        members.append(instance_id)
        if not self.groups[source]:
            del self.groups[source]
        return [Move(instance_id, source, target)]

    def _members(self, macro_id: str) -> list[str]:
        if macro_id not in self.groups:
            raise NotFoundError(f"no macro instance {macro_id}; there are {', '.join(self.groups) or 'none'}")
        return self.groups[macro_id]

    def _merges(self) -> list[Move]:
        moves: list[Move] = []
        while (pair := self._mergeable()) is not None:
            moves += self.merge(*pair)
        return moves

    def _mergeable(self) -> tuple[str, str] | None:
        """The two smallest groups, if one may hold both; the older one keeps its name."""
        smallest = sorted(self.groups, key=lambda g: len(self.staying(g)))[:2]
        if len(smallest) < 2:
            return None
        if sum(len(self.staying(g)) for g in smallest) > self.bounds.upper:
            return None
        order = list(self.groups)
        first, second = sorted(smallest, key=order.index)
        return first, second

    def _new_group(self) -> str:
        name = f"macro-{next(self._numbers)}"
        self.groups[name] = []
        return name

"""Latency targets: what a request was promised, by class or by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.defaults import TPOT_S, TTFT_S


@dataclass(frozen=True, slots=True)
class SloTarget:
    """ttft_s: from arrival to the first token. tpot_s: per further token, on average. Seconds, above 0."""

    ttft_s: float
    tpot_s: float

    def __post_init__(self) -> None:
        for name, value in (("TTFT", self.ttft_s), ("TPOT", self.tpot_s)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"a {name} target must be a positive number of seconds, got {value:g}")


INTERACTIVE = SloTarget(TTFT_S, TPOT_S)


@dataclass(frozen=True, slots=True)
class SloClasses:
    """Targets by name; `default` is the class of requests that name none."""

    classes: Mapping[str, SloTarget] = field(default_factory=lambda: {"interactive": INTERACTIVE})
    default: str = "interactive"

    def __post_init__(self) -> None:
        if self.default not in self.classes:
            raise ConfigError(f"default SLO class {self.default!r} is not one of {', '.join(self.classes)}")

    def resolve(
        self, name: str | None = None, ttft_s: float | None = None, tpot_s: float | None = None
    ) -> SloTarget:
        """The targets of a request: its class, overridden by what it says itself.

        ConfigError for an unknown class or a target that is not positive.
        """
        chosen = name or self.default
        if chosen not in self.classes:
            raise ConfigError(f"unknown SLO class {chosen!r}; known: {', '.join(sorted(self.classes))}")
        base = self.classes[chosen]
        if ttft_s is None and tpot_s is None:
            return base
        return SloTarget(base.ttft_s if ttft_s is None else ttft_s, base.tpot_s if tpot_s is None else tpot_s)

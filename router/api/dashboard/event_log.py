"""What happened to the cluster: instances that come, go, fail and recover, and what scaling did."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from router.instances.link import InstanceLink
from router.instances.registry import InstanceRegistry
from router.models.models import ServedModels
from router.scheduler.roles import EVERYBODY, Role

MAX_ENTRIES = 200


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """number: from 1, one more each time. at: the router's clock. kind: scale, recovery, fault or group."""

    number: int
    at: float
    kind: str
    text: str


@dataclass(slots=True)
class _Known:
    """An instance when it was last looked at. down_since: it cannot work since then. role: its share of
    prefill, if it is in a macro instance."""

    incarnation: str
    macro: str
    role: Role = EVERYBODY
    down_since: float | None = None
    epoch: int = 0


class EventLog:
    """Compares how things stand with how they stood. Asks nobody: it reads what the router has anyway."""

    def __init__(self, registry: InstanceRegistry, models: ServedModels, clock: Callable[[], float]) -> None:
        self.entries: deque[ClusterEvent] = deque(maxlen=MAX_ENTRIES)
        self._registry = registry
        self._models = models
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._moved = 0
        self._noted = float("-inf")
        self._count = 0

    def observe(self) -> None:
        """Look around. Call it again and again."""
        now = self._clock()
        macros = {
            view.instance_id: name
            for model in self._models
            for name, macro in model.dispatcher.scheduler.macros.items()
            for view in macro.views
        }
        links = {link.instance_id: link for link in self._registry}
        for name in [name for name in self._known if name not in links]:
            del self._known[name]
            self._note("fault", f"{name} is gone")
        roles = {
            view.instance_id: view.role
            for model in self._models
            for macro in model.dispatcher.scheduler.macros.values()
            for view in macro.views
        }
        for name, known in self._known.items():
            role = roles.get(name, known.role)
            if role.share != known.role.share:
                self._note("group", f"{name} takes {role.share:.0%} of prefill: {role}")
            known.role = role
        for name, link in links.items():
            self._instance(name, link, macros.get(name, ""), now)
        if (moved := self._models.moved - self._moved) > 0:
            self._note("recovery", f"{moved} unfinished sequences were given to other instances")
        self._moved = self._models.moved
        notes = (note for model in self._models for note in model.fleet.notes if note[0] > self._noted)
        for when, text in sorted(notes):
            self._noted = when
            self._note("scale", text, when)

    def configured(self, name: str, epoch: int) -> None:
        """An instance said in which epoch its stages are: one more after each loss of a stage."""
        known = self._known.get(name)
        if known is None:
            return
        if 0 < known.epoch < epoch:
            self._note("recovery", f"{name}: stages were set up again (epoch {epoch}), sequences recomputed")
        known.epoch = epoch

    def since(self, number: int) -> list[ClusterEvent]:
        """What came after that one."""
        return [one for one in self.entries if one.number > number]

    def _instance(self, name: str, link: InstanceLink, macro: str, now: float) -> None:
        incarnation = link.announced.incarnation
        known = self._known.get(name)
        if known is None:
            self._known[name] = known = _Known(incarnation, macro)
            self._note("group", f"{name} registered from {link.announced.address}, with {link.model.name}")
        if incarnation != known.incarnation:
            known.incarnation, known.epoch = incarnation, 0
            self._note("recovery", f"{name}: its controller was started anew")
        if macro and known.macro and macro != known.macro:
            self._note("group", f"{name} moved from {known.macro} to {macro}")
        known.macro = macro or known.macro
        report = link.report
        up = link.connected and (report is None or report.serving)
        if not up and known.down_since is None:
            known.down_since = now
            self._note(
                "fault", f"{name} {'has lost a stage' if link.connected else 'cannot be reached'}; recovering"
            )
        elif up and known.down_since is not None:
            self._note("recovery", f"{name} serves again after {now - known.down_since:.1f} s")
            known.down_since = None

    def _note(self, kind: str, text: str, at: float | None = None) -> None:
        self._count += 1
        self.entries.append(ClusterEvent(self._count, self._clock() if at is None else at, kind, text))

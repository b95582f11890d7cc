"""Carries scaling out: starts instances, drains those that leave and has them stopped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

import structlog

from common.errors import ConfigError, InvalidRequestError, NotFoundError, TidePipeError
from router.core.events import AddInstance, DrainInstance, SetScaling
from router.core.scaling import ScalingRules
from router.core.slo import SloTarget
from router.fleet.provisioner import Provisioner
from router.instances.dispatcher import Dispatcher, ScalingWish
from router.instances.link import InstanceLink
from router.instances.registry import InstanceRegistry

MAX_WANTED = 1024
DRAIN_POLL_S = 0.1
MAX_NOTES = 50

log = structlog.get_logger()


class Fleet:
    """Owns the tasks that start and stop instances. What the core wishes and what people want end up here."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        registry: InstanceRegistry,
        provisioner: Provisioner | None,
        clock: Callable[[], float],
        target: SloTarget,
    ) -> None:
        """provisioner: None if instances only come by themselves. target: of automatic scaling."""
        self.provisioner = provisioner
        self.starting: set[str] = set()
        self.stopping: set[str] = set()
        self.notes: deque[tuple[float, str]] = deque(maxlen=MAX_NOTES)
        self._dispatcher = dispatcher
        self._registry = registry
        self._clock = clock
        self._target = target
        self._group: asyncio.TaskGroup | None = None
        self._started = 0
        dispatcher.on_scaling = self._wished

    @property
    def automatic(self) -> bool:
        """Does the core decide?"""
        return self._dispatcher.scheduler.scaling is not None

    @property
    def staying(self) -> int:
        """Instances that are here or being started, and not on their way out."""
        here = [link for link in self._registry if not link.set_aside and not link.draining]
        return len(here) + len(self.starting)

    async def run(self) -> None:
        """Own the tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    def set_automatic(self, on: bool, least: int, most: int) -> None:
        """Let the core decide, or not."""
        if on and not 1 <= least <= most <= MAX_WANTED:
            raise InvalidRequestError(
                f"automatic scaling needs 1 <= least <= most <= {MAX_WANTED}, got {least} and {most}"
            )
        self._check_provisioner()
        rules = ScalingRules(self._target, least=least, most=most) if on else None
        self._dispatcher.hear(SetScaling(rules))
        self._note(f"automatic scaling on, {least} to {most} instances" if on else "automatic scaling off")

    def scale_to(self, wanted: int) -> None:
        """By hand. InvalidRequestError for a number that cannot be; ConfigError without a provisioner."""
        if not 0 <= wanted <= MAX_WANTED:
            raise InvalidRequestError(f"there can be 0 to {MAX_WANTED} instances, not {wanted}")
        self._check_provisioner()
        for _ in range(wanted - self.staying):
            self._add("by hand")
        for _ in range(self.staying - wanted):
            leaving = self._dispatcher.scheduler.mitosis.candidate(self._leaving())
            if leaving is None:
                break
            self._remove(leaving, "by hand")

    def drain(self, instance_id: str, *, resume: bool) -> int:
        """Give an instance nothing new, or something again; returns its unfinished sequences."""
        link = self.link(instance_id)
        if instance_id in self.stopping:
            raise InvalidRequestError(f"{instance_id} is being stopped already")
        link.set_aside = not resume
        if not resume:
            self._dispatcher.attendance.silent(link)
        self._note(f"{instance_id} {'takes requests again' if resume else 'is draining'}: by hand")
        return len(link.placements)

    def link(self, instance_id: str) -> InstanceLink:
        """The link of an instance; NotFoundError lists those there are."""
        for link in self._registry:
            if link.instance_id == instance_id:
                return link
        names = ", ".join(link.instance_id for link in self._registry) or "none"
        raise NotFoundError(f"no instance {instance_id}; there are: {names}")

    def _check_provisioner(self) -> None:
        if self.provisioner is None:
            raise ConfigError(
                "this router has no provisioner to start and stop instances with; start it with "
                "--provisioner, or start controllers by hand: they register by themselves"
            )

    def _wished(self, wish: ScalingWish) -> None:
        match wish:
            case AddInstance():
                self._add(_why(wish.reason, wish.numbers))
            case DrainInstance():
                self._remove(wish.instance_id, _why(wish.reason, wish.numbers))

    def _leaving(self) -> frozenset[str]:
        return frozenset(link.instance_id for link in self._registry if link.set_aside or link.draining)

    def _add(self, why: str) -> None:
        assert self._group is not None, "the fleet runs before anybody is served"
        self._started += 1
        name = f"start-{self._started}"
        self.starting.add(name)
        self._note(f"one more instance: {why}")
        self._group.create_task(self._start(name))

    async def _start(self, name: str) -> None:
        assert self.provisioner is not None
        try:
            started = await self.provisioner.start()
            self._note(f"{started.instance_id} serves at {started.controller_address} ({started.place})")
        except TidePipeError as error:
            self._note(f"an instance could not be started: {error}")
        finally:
            self.starting.discard(name)

    def _remove(self, instance_id: str, why: str) -> None:
        assert self._group is not None, "the fleet runs before anybody is served"
        link = self.link(instance_id)
        link.set_aside = True
        self._dispatcher.attendance.silent(link)
        self.stopping.add(instance_id)
        self._note(f"{instance_id} leaves when its {len(link.placements)} sequences are done: {why}")
        self._group.create_task(self._stop(link))

    async def _stop(self, link: InstanceLink) -> None:
        assert self.provisioner is not None
        name = link.instance_id
        try:
            # Whether its sequences end there or are lost with it: none are left when it is stopped.
            while len(link.placements):  # noqa: ASYNC110 (it is another object's state)
                await asyncio.sleep(DRAIN_POLL_S)
            await self.provisioner.stop(name)
            self._note(f"{name} has been stopped")
        except TidePipeError as error:
            self._note(f"{name} has left, but was not stopped: {error}")
        finally:
            self.stopping.discard(name)

    def _note(self, text: str) -> None:
        log.info("scaling", what=text)
        self.notes.append((self._clock(), text))


def _why(reason: str, numbers: Mapping[str, float]) -> str:
    pairs = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
    return f"{reason} ({pairs})" if pairs else reason

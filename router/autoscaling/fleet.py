"""The fleet of one model: instances that are started, drained and stopped as scaling wants it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import structlog

from router.autoscaling.provisioner import Provisioner, Stock
from router.instances.dispatcher import Dispatcher, ScalingWish
from router.instances.link import InstanceLink
from router.scheduler.events import AddInstance, DrainInstance, InstancesStarting, SetScaling
from router.scheduler.scaling import ScalingRules
from router.scheduler.slo import SloTarget
from tidepipe_common.errors import (
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    TidePipeError,
    UnavailableError,
)
from tidepipe_common.settings.defaults import SCALING_START_S

MAX_WANTED = 1024
AT_ONCE = 4
"""Instances that are started side by side: loading a model takes the whole disk, and all cores. Further ones
wait for their turn, and count as being started."""
LOOK_S = 2.0
"""How often what is there is compared with what is wanted."""
FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 300.0
"""After a start or a stop that failed; doubled each time."""
DRAIN_POLL_S = 0.1
MAX_NOTES = 50

log = structlog.get_logger()


class Drained(NamedTuple):
    """Sequences that an instance has when it begins to drain, and how many of them go on elsewhere."""

    unfinished: int
    handed_over: int


class Fleet:
    """Owns the tasks that start and stop instances. What the core wishes and what people want end up here.

    A number that somebody asked for is kept: it is compared with what is there again and again, and what
    could not be started or stopped is tried again.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        links: Iterable[InstanceLink],
        provisioner: Provisioner | None,
        clock: Callable[[], float],
        target: SloTarget,
        *,
        connect: Callable[[str], Provisioner] | None = None,
        model: str = "",
        hand_over: bool = True,
        start_s: float = SCALING_START_S,
    ) -> None:
        """links: its model's instances. provisioner: None if instances only come by themselves.

        target: of automatic scaling. connect: reaches a provisioner that instances name; None: nobody is
        asked but the one given. model: for people, where there are several.
        hand_over: what an instance has that is stopped goes on at others, instead of being finished there.
        start_s: that an instance takes to start, until automatic scaling has seen it.
        """
        self.provisioner = provisioner
        self.target = target
        self._connect = connect
        self._offered = ""
        self._of = f" of {model}" if model else ""
        self._hand_over = hand_over
        self._start_s = start_s
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.wanted: int | None = None
        self.stopping: set[str] = set()
        self.notes: deque[tuple[float, str]] = deque(maxlen=MAX_NOTES)
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._provisioned: frozenset[str] = frozenset()
        self._settled: frozenset[str] = frozenset()
        self._forced = False
        self._dispatcher = dispatcher
        self._links = links
        self._clock = clock
        self._group: asyncio.TaskGroup | None = None
        self._started = 0
        self._retry_s = FIRST_RETRY_S
        self._try_again = float("-inf")
        dispatcher.on_scaling = self._wished
        dispatcher.deserted = lambda: self._deserted

    def offered(self, address: str) -> None:
        """An instance names who starts and stops those of its model, at HOST:PORT; empty: nobody."""
        if self._connect is None or not address or address == self._offered:
            return
        self._offered, before = address, self.provisioner
        self.provisioner = self._connect(address)
        if before is not None and self._group is not None:
            self._group.create_task(before.close())

    async def close(self) -> None:
        """Hang up."""
        if self.provisioner is not None:
            await self.provisioner.close()

    @property
    def automatic(self) -> bool:
        """Does the core decide?"""
        return self._dispatcher.scheduler.scaling is not None

    @property
    def starting(self) -> set[str]:
        """Names of starts that are under way."""
        return set(self._starts)

    @property
    def staying(self) -> int:
        """Instances that are here or being started, and not on their way out.

        One whose processes are just being restarted is here: its provisioner has it. One that is being
        started registers before its provisioner says that it serves: it counts once.
        """
        leaving = {link.instance_id for link in self._links if link.set_aside or link.draining}
        there = self._there() - leaving - self.stopping
        return len(there) + max(0, len(self._starts) - len(there - self._settled))

    @property
    def _deserted(self) -> bool:
        """Nobody is there to answer, and nobody is expected: somebody asked for none, or drains them all."""
        if self.wanted == 0:
            return True
        links = list(self._links)
        return bool(links) and all(link.set_aside for link in links) and not self._starts and not self.wanted

    def _there(self) -> frozenset[str]:
        return self._provisioned.union(link.instance_id for link in self._links)

    async def run(self) -> None:
        """Own the tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                await asyncio.sleep(LOOK_S)
                if self.wanted is not None and self.provisioner is not None:
                    await self._look()
                    self._approach()

    def set_automatic(self, on: bool, least: int, most: int) -> None:
        """Let the core decide, or not."""
        if on and not 1 <= least <= most <= MAX_WANTED:
            raise InvalidRequestError(
                f"automatic scaling needs 1 <= least <= most <= {MAX_WANTED}, got {least} and {most}"
            )
        self._check_provisioner()
        rules = ScalingRules(self.target, least=least, most=most, start_s=self._start_s) if on else None
        self.wanted = None
        self._dispatcher.handle(SetScaling(rules))
        self._note(f"automatic scaling on, {least} to {most} instances" if on else "automatic scaling off")

    async def scale_to(self, wanted: int, *, force: bool = False) -> None:
        """By hand, to be kept from now on; automatic scaling ends.

        InvalidRequestError for a number that cannot be, and without force for one that the provisioner has no
        room for, or that leaves nobody to answer; ConfigError without a provisioner; UnavailableError for
        more of them while nobody can say what there is room for.
        """
        await self._want(wanted, force=force)

    async def scale_by(self, change: int, *, force: bool = False) -> int:
        """As `scale_to`, from what is wanted now, or there if nobody has said; the number wanted then.

        Two people who add one each at the same moment get two.
        """
        return await self._want(None, change, force=force)

    async def _want(self, wanted: int | None, change: int = 0, *, force: bool) -> int:
        """wanted: None for what is wanted by now, or there, and the change."""
        self._check_provisioner()
        stock = await self._look()
        # Nothing is awaited from here on: nobody else says a number meanwhile.
        staying = self.staying
        before = staying if self.wanted is None else self.wanted
        wanted = before + change if wanted is None else wanted
        if not 0 <= wanted <= MAX_WANTED:
            raise InvalidRequestError(_impossible(wanted, change, before))
        if wanted == 0 < staying and not force:
            raise InvalidRequestError(
                "that would stop the last instance, and every request would get 503 until there is another; "
                "force it (--force) if that is wanted"
            )
        if wanted > staying and not force:
            if stock is None:
                raise UnavailableError(
                    "the provisioner does not answer, so nobody knows what there is room for; ask again, or "
                    "force it (--force)"
                )
            if stock.more is not None and wanted - staying > stock.more:
                raise InvalidRequestError(
                    f"there is room for {stock.more} more instances, so for {staying + stock.more} in all "
                    f"({stock.why}), not for {wanted}; ask for fewer, or force it (--force)"
                )
        if self.automatic:
            self._dispatcher.handle(SetScaling(None))
        self.wanted, self._forced = wanted, force
        self._retry_s, self._try_again = FIRST_RETRY_S, float("-inf")
        self._note(f"{wanted} instances{self._of} wanted: by hand")
        self._approach()
        return wanted

    def drain(self, instance_id: str, *, resume: bool, force: bool = False, finish: bool = False) -> Drained:
        """Give an instance nothing new, or something again. What it has goes on elsewhere, unless it is to
        finish that itself.

        InvalidRequestError without force if nobody else is there to answer.
        """
        link = self.link(instance_id)
        if instance_id in self.stopping:
            raise InvalidRequestError(f"{instance_id} is being stopped already")
        others = (one for one in self._links if one is not link)
        if not (resume or force or link.set_aside or any(one.open for one in others)):
            raise InvalidRequestError(
                f"{instance_id} is the last one that takes requests: every request would get 503 until there "
                "is another; force it (--force) if that is wanted"
            )
        link.set_aside = not resume
        unfinished, moved = len(link.placements), 0
        if resume:
            self._note(f"{instance_id} takes requests again: by hand")
        else:
            self._dispatcher.directory.silent(link)
            moved = 0 if finish else self._dispatcher.evacuate(link, "it is drained by hand")
            self._note(
                f"{instance_id} is draining, {moved} of {unfinished} sequences go on elsewhere: by hand"
            )
        return Drained(unfinished, moved)

    def link(self, instance_id: str) -> InstanceLink:
        """The link of an instance of this model; NotFoundError lists those there are."""
        for link in self._links:
            if link.instance_id == instance_id:
                return link
        names = ", ".join(link.instance_id for link in self._links) or "none"
        raise NotFoundError(f"no instance {instance_id}; there are: {names}")

    def _check_provisioner(self) -> Provisioner:
        if self.provisioner is None:
            raise ConfigError(
                f"this router has no provisioner to start and stop instances{self._of} with; start it with "
                "--provisioner, or start controllers by hand: they register by themselves"
            )
        return self.provisioner

    # -- what is wanted, and what is there ------------------------------------------------------------

    async def _look(self) -> Stock | None:
        """Ask the provisioner what it has; None if it does not answer: what it said last holds."""
        assert self.provisioner is not None
        try:
            stock = await self.provisioner.stock()
        except TidePipeError as error:
            log.warning("the provisioner does not say what it has", reason=str(error))
            return None
        self._provisioned = stock.instances
        return stock

    def _approach(self) -> None:
        """Start and stop towards the number that somebody wants."""
        wanted = self.wanted
        if wanted is None or self.automatic:
            return
        if self._clock() >= self._try_again:
            for _ in range(min(wanted - self.staying, AT_ONCE - len(self._starts))):
                self._add(f"{wanted} are wanted", force=self._forced)
        for _ in range(self.staying - wanted):
            # What is not there yet is the cheapest to do without.
            if self._starts:
                name, start = self._starts.popitem()
                start.cancel()
                self._note(f"{name} is given up: {wanted} are wanted")
                self._told()
            elif (leaving := self._dispatcher.scheduler.mitosis.candidate()) is not None:
                self._remove(leaving, f"{wanted} are wanted")
            else:
                return

    def _wished(self, wish: ScalingWish) -> None:
        match wish:
            case AddInstance():
                self._add_several(wish.count, _why(wish.reason, wish.numbers))
            case DrainInstance():
                self._remove(wish.instance_id, _why(wish.reason, wish.numbers))

    def _told(self) -> None:
        """The core counts what is being started."""
        self._dispatcher.handle(InstancesStarting(len(self._starts)))

    # -- starting -------------------------------------------------------------------------------------

    def _add_several(self, count: int, why: str) -> None:
        """As the core wishes, unless starts have just failed: it wishes again."""
        if (rest := self._try_again - self._clock()) > 0:
            log.info("not started now", count=count, again_in_s=round(rest, 1), why=why)
            self._told()
            return
        for _ in range(count):
            self._add(f"{count} at once: {why}" if count > 1 else why)

    def _add(self, why: str, *, force: bool = False) -> None:
        assert self._group is not None, "the fleet runs before anybody is served"
        self._started += 1
        name = f"start-{self._started}"
        self._note(f"{name}, one more instance: {why}")
        if not self._starts:
            # Who is new from now on, and not of a start that has ended, is one of those being started.
            self._settled = self._there()
        self._starts[name] = self._group.create_task(self._start(name, force))
        self._told()

    async def _start(self, name: str, force: bool) -> None:
        assert self.provisioner is not None
        try:
            async with self._turns:
                stock = None if force else await self.provisioner.stock()
                if stock is not None and stock.more == 0:
                    raise ConfigError(f"there is no room for one more ({stock.why})")
                started = await self.provisioner.start()
        except TidePipeError as error:
            self._note(f"{name} failed: {error}; it is tried again in {self._retry_s:g} s if still wanted")
            self._try_again = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
        else:
            self._retry_s = FIRST_RETRY_S
            self._provisioned |= {started.instance_id}
            self._settled |= {started.instance_id}
            self._note(f"{started.instance_id} serves at {started.controller_address} ({started.place})")
        finally:
            if self._starts.pop(name, None) is not None:
                self._told()

    # -- stopping -------------------------------------------------------------------------------------

    def _remove(self, instance_id: str, why: str) -> None:
        assert self._group is not None, "the fleet runs before anybody is served"
        link = self.link(instance_id)
        link.set_aside = True
        self._dispatcher.directory.silent(link)
        self.stopping.add(instance_id)
        here = len(link.placements)
        moved = self._dispatcher.evacuate(link, why) if self._hand_over else 0
        self._note(f"{instance_id} leaves when its {here - moved} sequences are done, {moved} go on: {why}")
        self._group.create_task(self._stop(link))

    async def _stop(self, link: InstanceLink) -> None:
        assert self.provisioner is not None
        name = link.instance_id
        # Whether its sequences end there or are lost with it: none are left when it is stopped.
        while len(link.placements):  # noqa: ASYNC110 (it is another object's state)
            await asyncio.sleep(DRAIN_POLL_S)
        wait_s = FIRST_RETRY_S
        while True:
            try:
                await self.provisioner.stop(name)
            except NotFoundError as error:
                self._note(f"{name} has left, but was not stopped: {error}")
            except TidePipeError as error:
                self._note(f"{name} could not be stopped: {error}; it is tried again in {wait_s:g} s")
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
                continue
            else:
                self._note(f"{name} has been stopped")
            self._provisioned -= {name}
            self.stopping.discard(name)
            return

    def _note(self, text: str) -> None:
        log.info("scaling", what=text)
        self.notes.append((self._clock(), text))


def _impossible(wanted: int, change: int, before: int) -> str:
    """Why no such number can be wanted, in the words in which it was asked for."""
    there = f"there {'is 1 instance' if before == 1 else f'are {before} instances'}"
    if wanted < 0 and change:
        return f"{there}; at most {before} can be removed"
    if change:
        return f"{there}, and can be {MAX_WANTED}; at most {MAX_WANTED - before} can be added"
    return f"there can be 0 to {MAX_WANTED} instances, not {wanted}"


def _why(reason: str, numbers: Mapping[str, float]) -> str:
    pairs = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
    return f"{reason} ({pairs})" if pairs else reason

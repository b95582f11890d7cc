"""Passing instances on to other routers: EcoServe's migration without interruption, across processes.

The new router gets the instance's handle and begins to use it; the old one gives it nothing new, but streams
what it has there to the end. The instance notices nothing but a second watcher, and renews its lease with the
new router from its next renewal on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router.instances.link import InstanceLink
from router.instances.registry import InstanceRegistry
from router.instances.router_client import pass_instance
from tidepipe_common.errors import InvalidRequestError, PermissionDeniedError
from tidepipe_common.numerals import host_and_port
from tidepipe_common.security.process import own

FIRST_LEASE_S = 5.0
"""Several times what an instance takes to learn where it belongs now."""
GIVEN_UP_AFTER_S = 8.0
"""An instance that still comes here so long after it was sent away cannot reach its new router."""


@dataclass(slots=True)
class _Passed:
    address: str
    since: float


class InstanceHandoff:
    """Remembers which instances were passed on, and where to."""

    def __init__(self, registry: InstanceRegistry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._passed: dict[str, _Passed] = {}

    async def pass_on(self, link: InstanceLink, address: str) -> int:
        """Hand an instance to the router at HOST:PORT; returns how many sequences are finished here.

        Nothing has changed if that router does not take it (its own error, or UnavailableError), or must not
        be asked (PermissionDeniedError).
        """
        if host_and_port(address) is None:
            raise InvalidRequestError(f"a router's address is HOST:PORT, got {address!r}", "router_address")
        credentials = own()
        if credentials.token and not credentials.secure:
            # Whoever is at that address would be shown the token, by us and then by the instance; and
            # without TLS anybody may ask for this.
            raise PermissionDeniedError(
                "a cluster without TLS passes no instance on to another router, which cannot prove that it "
                "is one; give both clusters certificates (--tls)"
            )
        model = "" if link.facts is None else link.facts.model.model
        await pass_instance(address, link.announced, model, FIRST_LEASE_S)
        self._passed[link.instance_id] = _Passed(address, self._clock())
        link.set_aside = True
        link.model.dispatcher.directory.silent(link)
        return len(link.placements)

    def whereabouts(self, instance_id: str) -> str:
        """HOST:PORT of the router that has it now; empty if it belongs here."""
        passed = self._passed.get(instance_id)
        if passed is None:
            return ""
        if self._clock() - passed.since > GIVEN_UP_AFTER_S:
            self.take_back(instance_id)
            return ""
        return passed.address

    def take_back(self, instance_id: str) -> None:
        """It belongs here again."""
        if self._passed.pop(instance_id, None) is None:
            return
        for link in self._registry:
            if link.instance_id == instance_id:
                link.set_aside = False

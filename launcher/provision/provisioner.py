"""The protocol of provisioners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ProvisionedInstance:
    """controller_address: HOST:PORT. place: where its processes are, in words."""

    instance_id: str
    controller_address: str
    place: str


@dataclass(frozen=True, slots=True)
class Room:
    """more: instances. why: what that rests on, in words."""

    more: int
    why: str


class InstanceProvisioner(Protocol):
    """Owns the machines or processes that instances run on.

    provisioner: HOST:PORT at which a router that is not ours reaches it, which its instances tell.
    """

    provisioner: str

    async def start_instance(self) -> ProvisionedInstance:
        """Start one more, with all its stages; returns when it serves.

        OverloadedError if there is no room for it, UnavailableError if it does not come up.
        """
        ...

    async def stop_instance(self, instance_id: str) -> None:
        """End one; returns when its processes are gone. NotFoundError if it was not started here."""
        ...

    def instances(self) -> list[ProvisionedInstance]:
        """Those that were started here and not stopped."""
        ...

    def room(self) -> Room | None:
        """For how many more there is room beside them and those being started; None if nobody can say."""
        ...

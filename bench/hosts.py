"""Hosts made of network namespaces: own addresses, shaped links, cables to pull. Linux, root, iproute2.

Nothing in the machine's own network is touched: the switch, too, is a namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SUBNET = "10.77.0"
COMMAND_S = 10.0
BURST = "512kb"


class HostsUnavailableError(Exception):
    """Namespaces cannot be made here; says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """One of them. address: its IPv4 address."""

    name: str
    namespace: str
    address: str

    def inside(self, *command: str) -> list[str]:
        """The command, to be run on this host."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def bytes_sent(self) -> int:
        """What has left through its network card, headers included."""
        shown = _ip("-n", self.namespace, "-s", "-j", "link", "show", "eth0")
        return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])


class Hosts:
    """Some hosts on one switch."""

    def __init__(self, count: int) -> None:
        self._switch = f"tidepipe-{os.getpid()}-switch"
        self.hosts = [
            Host(f"host{index}", f"tidepipe-{os.getpid()}-{index}", f"{SUBNET}.{index + 1}")
            for index in range(count)
        ]

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def build(self) -> None:
        """Make namespaces, switch and cables."""
        _ip("netns", "add", self._switch)
        self._on_switch("link", "add", "bridge", "type", "bridge")
        self._on_switch("link", "set", "bridge", "up")
        for index, host in enumerate(self.hosts):
            _ip("netns", "add", host.namespace)
            _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth")
            peer = f"port{index}"
            _ip("-n", host.namespace, "link", "set", "veth0", "name", peer)
            _ip("-n", host.namespace, "link", "set", peer, "netns", self._switch)
            self._on_switch("link", "set", peer, "master", "bridge", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host.namespace, "link", "set", device, "up")

    def shape(self, rate: str) -> None:
        """Limit every cable, both ways. rate: as tc writes it, such as 1gbit."""
        limit = ["root", "tbf", "rate", rate, "burst", BURST, "latency", "50ms"]
        for index, host in enumerate(self.hosts):
            _run(["tc", "-n", host.namespace, "qdisc", "replace", "dev", "eth0", *limit])
            _run(["tc", "-n", self._switch, "qdisc", "replace", "dev", f"port{index}", *limit])

    def cut(self, host: Host) -> None:
        """Pull a host's cable."""
        self._on_switch("link", "set", self._port(host), "down")

    def heal(self, host: Host) -> None:
        """Plug it in again."""
        self._on_switch("link", "set", self._port(host), "up")

    def sever(self, one: Host, other: Host) -> None:
        """Let two hosts not reach each other, while the rest of the network stands."""
        for here, there in ((one, other), (other, one)):
            _ip("-n", here.namespace, "route", "add", "blackhole", f"{there.address}/32")

    def rejoin(self, one: Host, other: Host) -> None:
        """Undo `sever`."""
        for here, there in ((one, other), (other, one)):
            _ip("-n", here.namespace, "route", "delete", "blackhole", f"{there.address}/32")

    def remove(self) -> None:
        """Delete all; what runs there loses its network."""
        for namespace in (*(host.namespace for host in self.hosts), self._switch):
            with contextlib.suppress(RuntimeError):
                _ip("netns", "delete", namespace)

    def _port(self, host: Host) -> str:
        return f"port{self.hosts.index(host)}"

    def _on_switch(self, *arguments: str) -> None:
        _ip("-n", self._switch, *arguments)


@contextlib.contextmanager
def network_of_hosts(count: int) -> Iterator[Hosts]:
    """Hosts that are gone afterwards. HostsUnavailableError if this machine cannot have them."""
    if os.geteuid() != 0:
        raise HostsUnavailableError("network namespaces need root")
    if missing := [name for name in ("ip", "tc", "nsenter") if shutil.which(name) is None]:
        raise HostsUnavailableError(f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux)")
    hosts = Hosts(count)
    try:
        try:
            hosts.build()
        except RuntimeError as error:
            raise HostsUnavailableError(str(error)) from error
        yield hosts
    finally:
        hosts.remove()


def _ip(*arguments: str) -> str:
    return _run(["ip", *arguments])


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout

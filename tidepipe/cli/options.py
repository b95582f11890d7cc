"""Options that several commands have, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidepipe_common.errors import ConfigError

Endpoint = Annotated[str, typer.Option("--endpoint", metavar="HOST:PORT", help="The router's gRPC address.")]
RunningRouter = Annotated[
    str | None, typer.Option("--endpoint", metavar="HOST:PORT", help="A running router to use.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# Of simulations, and of load on a live server.
SheetHardware = Annotated[str, typer.Option("--hardware", metavar="NAME", help="L20, A100, A800 or H100.")]
MeasuredProfile = Annotated[
    Path | None,
    typer.Option("--profile", metavar="CSV", help="Measured: tokens, ms of the whole model on one device."),
]
Arrivals = Annotated[
    str, typer.Option("--arrivals", metavar="KIND", help="poisson, gamma:CV (bursts), or trace.")
]
Attainment = Annotated[
    float, typer.Option("--attainment", min=0.01, max=1.0, help="Share of requests that must meet both.")
]
Noise = Annotated[
    float,
    typer.Option("--noise", min=0, max=5, help="Error of predicted lengths (sigma of the logarithm)."),
]
MaxTotal = Annotated[
    int | None,
    typer.Option("--max-total", min=2, help="Tokens of prompt and output together. Default: context."),
]
NetworkRate = Annotated[
    float | None, typer.Option("--network-gb-s", min=0.001, help="Between nodes, 1e9 bytes/s per node.")
]
DispatchMs = Annotated[
    float | None,
    typer.Option(
        "--dispatch-ms",
        min=0.0,
        max=1000.0,
        help="What a step costs beside computing, as `tidepipe admin phases` shows it. Default: 1.5.",
    ),
]
WorkloadSource = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="FILE|NAME",
        help="Azure CSV, ShareGPT JSON, Mooncake JSONL (with hash_ids), OpenAI batch or answers JSONL; or "
        "synthetic: alpaca-like, sharegpt-like, longbench-like, conversations, agents (the last two with "
        "settings, as in agents:turns=20,think=1).",
    ),
]
"""`workloads.files.open_workload` reads it."""
PrefixCaching = Annotated[
    str,
    typer.Option(
        "--prefix-caching",
        metavar="on|off",
        help="Keep KV blocks, and share them among requests that begin alike.",
    ),
]

KvTransfers = Annotated[
    str,
    typer.Option(
        "--kv-transfer",
        metavar="auto|never",
        help="KV blocks go from one instance to another where that is quicker than computing them.",
    ),
]


def refuse_given(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """ConfigError for the first of these options that was typed in, though here it would change nothing.

    names: of the command's parameters. why: goes on behind its flag.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{parameter.opts[0]} {why}")


def reuses(prefix_caching: str) -> bool:
    """What was chosen; ConfigError if it is neither."""
    if prefix_caching not in ("on", "off"):
        raise ConfigError(f"--prefix-caching must be on or off, got {prefix_caching!r}")
    return prefix_caching == "on"


def transfers(kv_transfer: str) -> bool:
    """What was chosen; ConfigError if it is neither."""
    if kv_transfer not in ("auto", "never"):
        raise ConfigError(f"--kv-transfer must be auto or never, got {kv_transfer!r}")
    return kv_transfer == "auto"

"""What a cluster did, saved for Perfetto: shared by the commands that have such an option."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tidepipe.client.async_client import AsyncClient

TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Write what each stage did as a Chrome trace (ui.perfetto.dev opens it), at the end.",
    ),
]


async def save_trace(client: AsyncClient, path: Path, seconds: float = 0.0) -> None:
    """Ask the cluster for its last seconds (0: all that it keeps) and write them."""
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe_common.telemetry.chrome_trace import write_chrome_trace

    steps = write_chrome_trace(await client.timelines(seconds), path)
    print(f"wrote {steps} steps to {path}; open it in ui.perfetto.dev", file=sys.stderr)

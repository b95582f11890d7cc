"""`tidepipe admin trace`: what the stages of a running cluster have been doing, for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidepipe.cli.connect import connected
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.options import Endpoint
from tidepipe.cli.run import run
from tidepipe.cli.trace import save_trace
from tidepipe_common.regular_files import check_writable


def trace(
    endpoint: Endpoint,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where it goes.")],
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="The last so many seconds. Default: all that is kept.")
    ] = 0.0,
) -> None:
    """Write the last seconds of every instance as a Chrome trace: stages, switches, memory, batches.

    Controllers always keep the last steps, so that one can look back at what just happened.
    """
    check_writable(output)
    run(_trace(endpoint, output, seconds))


async def _trace(endpoint: str, output: Path, seconds: float) -> int:
    async with await connected(endpoint) as client:
        await save_trace(client, output, seconds)
    return SUCCESS

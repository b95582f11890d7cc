"""`tidepipe admin`: what operators ask."""

from __future__ import annotations

from typing import Annotated

import typer

from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.run import run

admin_app = typer.Typer(help="Look into a running cluster.", no_args_is_help=True)


@admin_app.callback()
def _admin() -> None:
    """Look into a running cluster."""


@admin_app.command("status")
def status(
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="HOST:PORT", help="The router's gRPC address.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show instances with their phase and its reason, batches, KV blocks, stages, and the predictor."""
    run(_status(endpoint, as_json))


async def _status(endpoint: str, as_json: bool) -> int:
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.status_view import print_status, status_json
    from tidepipe.client.async_client import AsyncClient

    async with await AsyncClient.connect(endpoint, connect_timeout=5.0) as client:
        state = await client.status()
    if as_json:
        print(status_json(state))
    else:
        print_status(state)
    return SUCCESS

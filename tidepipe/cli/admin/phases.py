"""`tidepipe admin phases`: what each instance is busy with, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tidepipe.cli.connect import connected
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.options import AsJson, Endpoint, refuse_given
from tidepipe.cli.run import run

if TYPE_CHECKING:
    from tidepipe.client.async_client import AsyncClient


def phases(
    context: typer.Context,
    endpoint: Endpoint,
    watch: Annotated[bool, typer.Option("--watch", help="Keep the table up to date until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=60.0, help="Seconds between two looks.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show each instance's phase, its age and reason, batches, stages' busy shares, and KV memory.

    With --watch and --json: one object per line and look.
    """
    if not watch:
        refuse_given(context, ("interval",), "is for --watch: give both")
    run(_phases(endpoint, watch, interval, as_json), interrupted=SUCCESS)


async def _phases(endpoint: str, watch: bool, interval: float, as_json: bool) -> int:
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.admin.phases_view import phases_json, phases_view

    async with await connected(endpoint) as client:
        if watch:
            await _watch(client, interval, as_json)
        state = await client.status()
        if as_json:
            print(phases_json(state))
        else:
            from rich.console import Console

            Console().print(phases_view(state))
    return SUCCESS


async def _watch(client: AsyncClient, interval: float, as_json: bool) -> None:
    """Until cancelled."""
    import asyncio

    from rich.live import Live

    from tidepipe.cli.admin.phases_view import phases_json, phases_view

    if as_json:
        while True:
            print(phases_json(await client.status()), flush=True)
            await asyncio.sleep(interval)
    with Live(phases_view(await client.status()), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(interval)
            live.update(phases_view(await client.status()), refresh=True)

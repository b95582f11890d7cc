"""`tidepipe admin cache`: what instances keep of what they computed, and how often it was found again."""

from __future__ import annotations

from typing import Annotated

import typer

from tidepipe.cli.connect import connected
from tidepipe.cli.exit_codes import SOME_FAILED, SUCCESS
from tidepipe.cli.options import AsJson, Endpoint
from tidepipe.cli.run import run


def cache(
    endpoint: Endpoint,
    clear: Annotated[
        bool, typer.Option("--clear", help="Forget what is kept: nothing computed before is found any more.")
    ] = False,
    instance_id: Annotated[
        str, typer.Option("--instance", metavar="INSTANCE", help="Only this instance.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show what instances keep for requests that begin alike, and what it saved; or clear it.

    What runs goes on after --clear. Exit code 1 if an instance could not be cleared.
    """
    run(_cache(endpoint, clear, instance_id, as_json))


async def _cache(endpoint: str, clear: bool, instance_id: str, as_json: bool) -> int:
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.admin.cache_view import cache_json, chosen, print_cache
    from tidepipe.client.admin import AdminClient

    cleared = None
    if clear:
        async with AdminClient(endpoint) as admin:
            cleared = await admin.clear_prefix_caches(instance_id)
    async with await connected(endpoint) as client:
        instances = chosen(await client.status(), instance_id)
    if as_json:
        print(cache_json(instances, cleared))
    else:
        print_cache(instances, cleared)
    failed = cleared is not None and any(one["error"] for one in cleared)
    return SOME_FAILED if failed else SUCCESS

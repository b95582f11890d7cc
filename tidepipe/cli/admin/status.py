"""`tidepipe admin status`: how the whole cluster stands."""

from __future__ import annotations

from tidepipe.cli.connect import connected
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.options import AsJson, Endpoint
from tidepipe.cli.run import run


def status(endpoint: Endpoint, as_json: AsJson = False) -> None:
    """Show instances with their phase and its reason, batches, KV blocks, stages, and the predictor."""
    run(_status(endpoint, as_json))


async def _status(endpoint: str, as_json: bool) -> int:
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.admin.status_view import print_status, status_json

    async with await connected(endpoint) as client:
        state = await client.status()
    if as_json:
        print(status_json(state))
    else:
        print_status(state)
    return SUCCESS

"""Runs one admin call and shows its answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tidepipe.cli.connect import waiting_for
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.run import run
from tidepipe.cli.waiting import named_if_slow

if TYPE_CHECKING:
    from tidepipe.client.admin import AdminClient

Answer = dict[str, Any]


def show(
    endpoint: str,
    as_json: bool,
    call: Callable[[AdminClient], Awaitable[Answer]],
    view: Callable[[Answer], None],
) -> None:
    """Ask the router at `endpoint`; print one JSON object, or what `view` makes of it."""

    async def ask() -> int:
        # Late, so that `tidepipe --help` stays quick.
        from tidepipe.client.admin import AdminClient

        async with named_if_slow(waiting_for(endpoint)), AdminClient(endpoint) as client:
            answer = await call(client)
        if as_json:
            print(json.dumps(answer))
        else:
            view(answer)
        return SUCCESS

    run(ask())

"""`tidepipe admin policy`: routing and scheduling, changed while all goes on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tidepipe.cli.admin.show import show
from tidepipe.cli.options import AsJson, Endpoint, refuse_given


def policy(
    context: typer.Context,
    endpoint: Endpoint,
    routing: Annotated[str, typer.Option("--routing", metavar="R", help="Where requests go.")] = "",
    instance: Annotated[str, typer.Option("--policy", metavar="P", help="How instances schedule.")] = "",
    instance_id: Annotated[
        str, typer.Option("--instance", metavar="INSTANCE", help="For this instance only.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show the policies, or change them."""
    if not instance:
        refuse_given(context, ("instance_id",), "is for --policy P: say which one it shall have")

    def view(answer: dict[str, Any]) -> None:
        print(f"routing: {answer['routing']}")
        for name, chosen in sorted(answer["instance_policies"].items()):
            print(f"{name}: {chosen}")

    show(endpoint, as_json, lambda client: client.policies(routing, instance, instance_id), view)

"""`tidepipe admin macro` and `instances`: which instances cooperate."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tidepipe.cli.admin.show import show
from tidepipe.cli.client_options import client_options
from tidepipe.cli.options import AsJson, Endpoint, refuse_given
from tidepipe_common.errors import ConfigError

macro_app = typer.Typer(help="Macro instances: list, split, merge, move.", no_args_is_help=True)

Macro = Annotated[str, typer.Argument(metavar="MACRO", help="Name of a macro instance.")]
Instance = Annotated[str, typer.Argument(metavar="INSTANCE", help="Name of an instance.")]


def _print_groups(groups: dict[str, Any]) -> None:
    from tidepipe.cli.admin.groups_view import print_groups  # late, so that `tidepipe --help` stays quick

    print_groups(groups)


@macro_app.command("list")
@client_options
def macro_list(endpoint: Endpoint, as_json: AsJson = False) -> None:
    """Show the macro instances and what routing knows of their instances."""
    show(endpoint, as_json, lambda client: client.groups(), _print_groups)


@macro_app.command("split")
@client_options
def macro_split(
    macro: Macro,
    endpoint: Endpoint,
    count: Annotated[
        int, typer.Option("--count", min=0, max=1_000_000, help="Instances that leave; 0: N_l.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Split the newest instances of a macro instance off."""
    show(endpoint, as_json, lambda client: client.split(macro, count), _print_groups)


@macro_app.command("merge")
@client_options
def macro_merge(
    into: Macro,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The one that is dissolved.")],
    endpoint: Endpoint,
    as_json: AsJson = False,
) -> None:
    """Let all instances of OTHER join MACRO."""
    show(endpoint, as_json, lambda client: client.merge(into, other), _print_groups)


@macro_app.command("move")
@client_options
def macro_move(
    instance: Instance,
    endpoint: Endpoint,
    to: Annotated[str, typer.Option("--to", metavar="MACRO", help="Macro instance of this router.")] = "",
    to_router: Annotated[
        str, typer.Option("--to-router", metavar="HOST:PORT", help="Another router's gRPC address.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Pass an instance on; what it has begun goes on undisturbed."""
    if bool(to) == bool(to_router):
        raise ConfigError("say where to: --to MACRO, or --to-router HOST:PORT")
    show(
        endpoint,
        as_json,
        lambda client: client.move(instance, macro_id=to, router=to_router),
        lambda answer: _print_groups(answer["groups"]),
    )


def instances(endpoint: Endpoint, as_json: AsJson = False) -> None:
    """Show all instances, with their macro instances."""

    def flat(groups: dict[str, Any]) -> dict[str, Any]:
        return {
            "instances": [
                {"macro_id": macro["macro_id"], **member}
                for macro in groups["macros"]
                for member in macro["members"]
            ]
        }

    if as_json:

        async def ask(client: Any) -> dict[str, Any]:
            return flat(await client.groups())

        show(endpoint, True, ask, _print_groups)
    else:
        show(endpoint, False, lambda client: client.groups(), _print_groups)


def drain(
    context: typer.Context,
    instance: Instance,
    endpoint: Endpoint,
    resume: Annotated[bool, typer.Option("--resume", help="Take it back.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also the last one that takes requests.")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="What it has ends there, however long.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give an instance nothing new; what it has goes on at other instances, from its next token on."""
    if resume:
        refuse_given(context, ("force", "finish"), "is for draining: leave it out with --resume")

    async def ask(client: Any) -> dict[str, Any]:
        drained = await client.drain_counts(instance, resume=resume, force=force, finish=finish)
        return {"instance_id": instance, **drained}

    def view(answer: dict[str, Any]) -> None:
        if resume:
            print(f"{instance} takes requests again")
            return
        moved, rest = answer["handed_over"], answer["unfinished"] - answer["handed_over"]
        print(f"{instance} hands {moved} sequences over to others and finishes {rest}")

    show(endpoint, as_json, ask, view)

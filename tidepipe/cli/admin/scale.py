"""`tidepipe admin scale`: how many instances there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tidepipe.cli.admin.show import show
from tidepipe.cli.client_options import client_options
from tidepipe.cli.options import AsJson, Endpoint, refuse_given
from tidepipe_common.errors import ConfigError

scale_app = typer.Typer(help="Start and stop instances.", no_args_is_help=True)

Force = Annotated[
    bool, typer.Option("--force", help="Also beyond what the machines hold, and down to no instance.")
]
Count = Annotated[int, typer.Argument(metavar="N", min=0, max=1_000_000, help="How many.")]


Model = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Of this model. Default: the router's own.")
]


def _print_scaling(scaling: dict[str, Any]) -> None:
    from tidepipe.cli.admin.groups_view import print_scaling  # late, so that `tidepipe --help` stays quick

    print_scaling(scaling)


def _scale(endpoint: str, as_json: bool, how: str, count: int, force: bool, model: str) -> None:
    def view(answer: dict[str, Any]) -> None:
        wanted = answer["wanted"]
        print(f"{wanted} {'instance' if wanted == 1 else 'instances'} when all is done")
        _print_scaling(answer["scaling"])

    show(endpoint, as_json, lambda client: client.scale(how, count, force=force, model=model), view)


@scale_app.command("set")
@client_options
def scale_set(
    count: Count, endpoint: Endpoint, force: Force = False, model: Model = "", as_json: AsJson = False
) -> None:
    """Have N instances, and keep it so."""
    _scale(endpoint, as_json, "set", count, force, model)


@scale_app.command("add")
@client_options
def scale_add(
    endpoint: Endpoint, count: Count = 1, force: Force = False, model: Model = "", as_json: AsJson = False
) -> None:
    """Start N more (default 1)."""
    _scale(endpoint, as_json, "add", count, force, model)


@scale_app.command("remove")
@client_options
def scale_remove(
    endpoint: Endpoint, count: Count = 1, force: Force = False, model: Model = "", as_json: AsJson = False
) -> None:
    """Drain and stop N (default 1)."""
    _scale(endpoint, as_json, "remove", count, force, model)


@scale_app.command("auto")
@client_options
def scale_auto(
    context: typer.Context,
    state: Annotated[str, typer.Argument(metavar="on|off", help="Shall the router do it by itself?")],
    endpoint: Endpoint,
    least: Annotated[int, typer.Option("--min", min=1, max=1_000_000, help="Instances at least.")] = 1,
    most: Annotated[int, typer.Option("--max", min=1, max=1_000_000, help="Instances at most.")] = 64,
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Add and remove instances by mean TTFT and saved TPOT, or leave it to people."""
    if state not in ("on", "off"):
        raise ConfigError(f"automatic scaling is on or off, not {state!r}")
    if state == "off":
        refuse_given(context, ("least", "most"), "is for `auto on`: leave it out")
    show(
        endpoint,
        as_json,
        lambda client: client.auto_scaling(state == "on", least, most, model=model),
        lambda answer: _print_scaling(answer["scaling"]),
    )

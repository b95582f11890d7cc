"""The commands of `tidepipe admin`, one line each."""

from __future__ import annotations

import typer

from tidepipe.cli.admin.cache import cache
from tidepipe.cli.admin.macro import drain, instances, macro_app
from tidepipe.cli.admin.phases import phases
from tidepipe.cli.admin.policy import policy
from tidepipe.cli.admin.scale import scale_app
from tidepipe.cli.admin.status import status
from tidepipe.cli.admin.storage import storage
from tidepipe.cli.admin.trace import trace
from tidepipe.cli.client_options import client_options

admin_app = typer.Typer(help="Look into a running cluster, and change it.", no_args_is_help=True)
admin_app.command("status")(client_options(status))
admin_app.command("phases")(client_options(phases))
admin_app.command("cache")(client_options(cache))
admin_app.command("trace")(client_options(trace))
admin_app.command("instances")(client_options(instances))
admin_app.command("drain")(client_options(drain))
admin_app.command("policy")(client_options(policy))
admin_app.command("storage")(client_options(storage))
admin_app.add_typer(scale_app, name="scale")
admin_app.add_typer(macro_app, name="macro")


@admin_app.callback()
def _admin() -> None:
    """Look into a running cluster, and change it."""

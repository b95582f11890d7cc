"""The commands of `tidepipe admin`, one line each."""

from __future__ import annotations

import typer

from tidepipe.cli.admin.status import status

admin_app = typer.Typer(help="Look into a running cluster.", no_args_is_help=True)
admin_app.command("status")(status)


@admin_app.callback()
def _admin() -> None:
    """Look into a running cluster."""

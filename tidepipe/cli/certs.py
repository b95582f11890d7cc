"""`tidepipe certs`: certificates for a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

certs_app = typer.Typer(help="Make certificates for mutual TLS.", no_args_is_help=True)

_DAYS = 365.0


@certs_app.callback()
def _certs() -> None:
    """Make certificates for mutual TLS."""


@certs_app.command("make")
def make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address of a machine of the cluster; repeatable. "),
    ] = None,
    days: Annotated[float, typer.Option("--days", help="Days until they expire.")] = _DAYS,
) -> None:
    """Make a development CA, a certificate for each service and client role, and a cluster token.

    Private keys can be read by their owner alone. Keep ca.key away from the cluster, or delete it.
    """
    # Late, so that `tidepipe --help` stays quick.
    from common.security.authority import make_certificates

    for path in make_certificates(folder, host or [], days):
        print(path)
    print("ca.key signs for anybody: keep it away from the cluster's machines", file=sys.stderr)

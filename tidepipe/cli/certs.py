"""`tidepipe certs`: certificates for a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tidepipe_common.settings.defaults import CERTIFICATE_DAYS

certs_app = typer.Typer(help="Make and renew certificates for mutual TLS.", no_args_is_help=True)

_Days = Annotated[float, typer.Option("--days", min=0.001, max=36_500.0, help="Days until they expire.")]


@certs_app.callback()
def _certs() -> None:
    """Make and renew certificates for mutual TLS."""


@certs_app.command("make")
def make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address of a machine of the cluster; repeatable."),
    ] = None,
    days: _Days = CERTIFICATE_DAYS,
) -> None:
    """Make a development CA, a certificate for each service and client role, and a cluster token.

    Private keys can be read by their owner alone. Keep ca.key away from the cluster, or delete it.
    """
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe_common.security.authority import make_certificates

    for path in make_certificates(folder, host or [], days):
        print(path)
    print("ca.key signs for anybody: keep it away from the cluster's machines", file=sys.stderr)


@certs_app.command("renew")
def renew(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `tidepipe certs make` filled.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Such as router or ca; repeatable. Default: all."),
    ] = None,
    ca_key: Annotated[
        Path | None,
        typer.Option("--ca-key", metavar="FILE", help="The CA's key. Default: ca.key in DIR."),
    ] = None,
    days: _Days = CERTIFICATE_DAYS,
) -> None:
    """Give certificates a new lifetime. Keys, names and the token stay.

    Old and new certificates get along: restart the services one at a time afterwards.
    """
    from tidepipe_common.security.authority import CA_KEY_FILE, renew_certificates

    for path in renew_certificates(folder, ca_key or folder / CA_KEY_FILE, days, only or ()):
        print(path)
    print("services use them from their next start: restart them one at a time", file=sys.stderr)

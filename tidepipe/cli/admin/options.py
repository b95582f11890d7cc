"""Options that the commands of `tidepipe admin` share."""

from __future__ import annotations

from typing import Annotated

import typer

Endpoint = Annotated[str, typer.Option("--endpoint", metavar="HOST:PORT", help="The router's gRPC address.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

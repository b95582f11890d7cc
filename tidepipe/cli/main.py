"""Entry point of the `tidepipe` command."""

from __future__ import annotations

import io
import os
import sys

import typer

from common.doors.descriptors import raise_limit
from common.errors import TidePipeError
from common.text import on_terminal
from tidepipe.cli.admin.app import admin_app
from tidepipe.cli.arguments import check_arguments
from tidepipe.cli.batch import batch
from tidepipe.cli.bench import bench_app
from tidepipe.cli.certs import certs_app
from tidepipe.cli.exit_codes import INTERRUPTED, SOME_FAILED, exit_code
from tidepipe.cli.generate import generate
from tidepipe.cli.keys import keys_app
from tidepipe.cli.model import model_app
from tidepipe.cli.predictor import predictor_app
from tidepipe.cli.profile import profile
from tidepipe.cli.sim import sim_app
from tidepipe.cli.up import up

app = typer.Typer(
    name="tidepipe",
    help="Serve large language models on commodity GPU nodes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up)
app.command("batch")(batch)
app.command("generate")(generate)
app.command("profile")(profile)
app.add_typer(bench_app, name="bench")
app.add_typer(admin_app, name="admin")
app.add_typer(model_app, name="model")
app.add_typer(keys_app, name="keys")
app.add_typer(predictor_app, name="predictor")
app.add_typer(certs_app, name="certs")
app.add_typer(sim_app, name="sim")


def main() -> None:
    """Run the command line; user errors become one line on stderr and an exit code."""
    # Else gRPC writes notes about lost connections, which the SDK mends, between a command's own lines.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    raise_limit()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8, or a file's odd name, ends no command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        check_arguments(sys.argv[1:])
        app()
    except TidePipeError as error:
        # It may quote what strangers or a service sent.
        print(f"error: {on_terminal(str(error))}", file=sys.stderr)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # `tidepipe ... | head` ends quietly; the interpreter must not try to flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(SOME_FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

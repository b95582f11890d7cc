"""Entry point of the `tidepipe` command."""

from __future__ import annotations

import os
import sys

import typer

from common.errors import TidePipeError
from tidepipe.cli.exit_codes import INTERRUPTED, SOME_FAILED, exit_code
from tidepipe.cli.model import model_app

app = typer.Typer(
    name="tidepipe",
    help="Serve large language models on commodity GPU nodes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(model_app, name="model")


def main() -> None:
    """Run the command line; user errors become one line on stderr and an exit code."""
    try:
        app()
    except TidePipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # `tidepipe ... | head` ends quietly; the interpreter must not try to flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(SOME_FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

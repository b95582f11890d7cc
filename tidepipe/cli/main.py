"""Entry point of the `tidepipe` command."""

from __future__ import annotations

import errno
import inspect
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from tidepipe.cli.admin.app import admin_app
from tidepipe.cli.batch import batch
from tidepipe.cli.bench import bench_app
from tidepipe.cli.certs import certs_app
from tidepipe.cli.exit_codes import BAD_USAGE, CLUSTER_FAILURE, INTERRUPTED, SOME_FAILED, exit_code
from tidepipe.cli.generate import generate
from tidepipe.cli.keys import keys_app
from tidepipe.cli.model import model_app
from tidepipe.cli.models import models
from tidepipe.cli.numbers import strict_numbers
from tidepipe.cli.plan import plan
from tidepipe.cli.predictor import predictor_app
from tidepipe.cli.profile import profile
from tidepipe.cli.sim import sim_app
from tidepipe.cli.up import up
from tidepipe.services import find_services
from tidepipe_common.descriptors import raise_limit
from tidepipe_common.errors import InvalidRequestError, TidePipeError
from tidepipe_common.extras import SERVER, require
from tidepipe_common.text.text import is_text, on_one_line, on_terminal
from tidepipe_common.version import tidepipe_version

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NO_ACCESS = (
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY),
)
"""Of a path that somebody named."""
_BOXED = 80
"""Columns of a terminal; `tests/unit/tidepipe/test_help.py` holds that boxes fit into them."""

app = typer.Typer(
    name="tidepipe",
    help="Serve large language models on commodity GPU nodes.",
    epilog="First steps: tidepipe model pull smollm2-135m; then tidepipe up --model smollm2-135m --stages 2 "
    "--http-port 8080, and open http://127.0.0.1:8080/ in a browser.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tidepipe {tidepipe_version()}")
        raise typer.Exit


def _join_lines(text: str) -> str:
    """A docstring's paragraphs without its line ends, for terminals of any width."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _name_values(command: Callable[..., Any]) -> None:
    """Placeholders of options that have none: else help shows `<bool>` beside flags, and `<list[str]>`."""
    for name, hint in command.__annotations__.items():
        # Of `Annotated[kind, detail, ..]`; what has no detail has no placeholder.
        kind, *details = get_args(hint) or (None,)
        for detail in details:
            if isinstance(detail, OptionInfo) and detail.metavar is None:
                detail.metavar = "" if kind in (bool, bool | None) else name.upper()


def _wrap_helps(group: typer.Typer) -> None:
    for command in group.registered_commands:
        if command.callback is not None and command.help is None:
            command.help = _join_lines(inspect.getdoc(command.callback) or "")
            _name_values(command.callback)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _wrap_helps(inner.typer_instance)


@app.callback()
def _tidepipe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve large language models on commodity GPU nodes."""


# What is too much is refused by the command itself, in words for who is used to `vllm serve MODEL`.
app.command("up", context_settings={"allow_extra_args": True})(up)
app.command("batch")(batch)
app.command("generate")(generate)
app.command("profile")(profile)
app.command("plan")(plan)
app.command("models")(models)
app.add_typer(bench_app, name="bench")
app.add_typer(admin_app, name="admin")
app.add_typer(model_app, name="model")
app.add_typer(keys_app, name="keys")
app.add_typer(predictor_app, name="predictor")
app.add_typer(certs_app, name="certs")
app.add_typer(sim_app, name="sim")
strict_numbers(app)
_wrap_helps(app)


def check_arguments(arguments: Sequence[str]) -> None:
    """InvalidRequestError names the first argument that is not UTF-8, which a shell may hand over.

    Python turns such bytes into lone surrogates, which no file name of ours, request or message can hold.
    """
    for number, argument in enumerate(arguments):
        if is_text(argument):
            continue
        before = arguments[number - 1] if number else ""
        name = before if before.startswith("-") and len(before) > 1 else f"argument {number + 1}"
        shown = on_one_line(os.fsencode(argument).decode("utf-8", "backslashreplace"))[:100]
        raise InvalidRequestError(f"{on_one_line(name)[:100]} is not valid UTF-8: {shown}")


def fit_help(columns: int) -> None:
    """Help without boxes where they would cut names of options: each stands in a line of its own then."""
    if columns < _BOXED:
        app.rich_markup_mode = None
        app.info.context_settings = {**(app.info.context_settings or {}), "terminal_width": columns}


def main() -> None:
    """Run the command line; user errors become one line on stderr and an exit code."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Else gRPC writes notes about lost connections, which the SDK mends, between a command's own lines.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    raise_limit()
    find_services()
    fit_help(shutil.get_terminal_size().columns)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8, or a file's odd name, ends no command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            check_arguments(sys.argv[1:])
            _run()
        finally:
            # Here, where it can still be said, and not when the interpreter ends.
            sys.stdout.flush()
    except TidePipeError as error:
        # It may quote what strangers or a service sent.
        print(f"error: {on_terminal(str(error))}", file=sys.stderr)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # `tidepipe ... | head` ends quietly.
        _forget_output()
        sys.exit(SOME_FAILED)
    except OSError as error:
        if error.errno in _NO_ACCESS and error.filename is not None:
            print(f"error: cannot use {on_terminal(str(error.filename))}: {error.strerror}", file=sys.stderr)
            sys.exit(BAD_USAGE)
        if error.errno not in _NO_ROOM:
            raise
        _forget_output()
        where = error.filename or "the output"
        print(f"error: cannot write {on_terminal(str(where))}: {error.strerror}", file=sys.stderr)
        sys.exit(CLUSTER_FAILURE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _run() -> None:
    try:
        app()
    except ModuleNotFoundError:
        # Of who installed the client alone. Commands that would notice late have asked before.
        require(SERVER, "this command")
        raise


def _forget_output() -> None:
    """The interpreter must not try to flush again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

"""`tidepipe profile`: what a step of a model takes on this hardware."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.options import AsJson
from tidepipe_common.device_name import DEVICES
from tidepipe_common.errors import ConfigError
from tidepipe_common.extras import SERVER, require
from tidepipe_common.regular_files import check_writable
from tidepipe_common.settings.defaults import MOST_THREADS

if TYPE_CHECKING:
    from stage_worker.profiling.check import Check
    from stage_worker.profiling.session import ProfilingSession
    from tidepipe_common.latency.profile import Profile

NEIGHBOUR_END_S = 10.0


def profile(
    model: Annotated[str, typer.Option("--model", metavar="M", help="As for `tidepipe up`.")],
    stages: Annotated[
        int,
        typer.Option(
            "--stages", min=1, max=64, help="Measure for pipelines of so many stages on one machine."
        ),
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Writes FILE.csv and FILE.json. Default: where `tidepipe up` finds it by itself.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="D", help="auto, float32, bfloat16 or float16.")
    ] = "auto",
    device: Annotated[str, typer.Option("--device", metavar="D", help=f"{DEVICES}.")] = "auto",
    quantization: Annotated[
        str | None, typer.Option("--quantization", metavar="Q", help="int8, as for `tidepipe up`.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=MOST_THREADS, help="Compute threads. Default: cores / stages."),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=100, help="How often everything is measured; medians count.")
    ] = 2,
    alone: Annotated[
        bool, typer.Option("--alone", help="On a CPU, do not keep the other stages' cores busy meanwhile.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a latency profile with the executor that serves; no cluster is needed.

    FILE.csv has two columns, tokens in a step and milliseconds of the whole model; FILE.json beside it adds
    what contexts, rows and the LM head cost. `--profile FILE.csv` of other commands uses both. Without
    --output the profile is kept for `tidepipe up` and `batch` with the same model, stages, dtype, threads.

    Example: `tidepipe profile --model smollm2-135m --stages 2`
    """
    require(SERVER, "`tidepipe profile`")
    if output is not None and (not output.name or output.suffix not in ("", ".csv", ".json")):
        raise ConfigError(f"--output must be a file that ends in .csv or .json, got {output}")
    if output is not None:
        for suffix in (".csv", ".json"):
            check_writable(output.with_suffix(suffix))
    # Late, so that `tidepipe --help` stays quick.
    import json

    from tidepipe_common.latency.kept_profile import Measured, kept_profile
    from tidepipe_common.latency.profile_file import profile_fields, write_profile
    from tidepipe_common.model_source import resolve_model

    place = str(resolve_model(model).resolve())
    # Behind it: it brings PyTorch along, for which a name that was mistyped need not wait.
    from stage_worker.profiling.session import ProfilingSession

    threads = threads or max(1, (os.cpu_count() or 1) // stages)
    session = ProfilingSession(
        model, stages=stages, device=device, dtype=dtype, threads=threads, quantization=quantization
    )
    about = session.about()
    neighbours = 0 if alone or about["device"] != "cpu" else stages - 1
    if output is None:
        output = kept_profile(Measured(place, device, dtype, quantization, threads, stages))
    with _neighbours(neighbours, model, stages, about["dtype"], threads):
        measured, check = _measure(session, rounds)
    about |= {"neighbours": neighbours, "check": asdict(check)}
    paths = write_profile(measured, about, output)
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)
    if as_json:
        files = {"files": [str(path) for path in paths]}
        print(json.dumps({**about, **profile_fields(measured), **files}))
    else:
        _print(measured, about)
        print(
            f"{check.steps} mixed steps that it was not made of: predicted {check.ratio:.2f} of measured "
            f"({check.least:.2f} to {check.most:.2f})"
        )
    raise typer.Exit(SUCCESS)


def _measure(session: ProfilingSession, rounds: int) -> tuple[Profile, Check]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from stage_worker.profiling.session import Progress as Measured

    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("steps", total=None)
        return session.measure(
            rounds, Measured(lambda total: bar.update(task, total=total), lambda: bar.advance(task))
        )


@contextlib.contextmanager
def _neighbours(count: int, model: str, stages: int, dtype: str, threads: int) -> Iterator[None]:
    """So many processes that compute meanwhile, as the other stages of a pipeline on this machine would."""
    command = [sys.executable, "-m", "stage_worker.profiling.neighbour", "--model", model]
    command += ["--stages", str(stages), "--dtype", dtype, "--threads", str(threads)]
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(_end, process)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise ConfigError("a process that was to keep a core busy ended; try --alone")
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=NEIGHBOUR_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _print(measured: Profile, about: dict[str, Any]) -> None:
    from rich.console import Console

    from tidepipe.cli.admin.table import Column, print_table

    console = Console()
    console.print(
        f"{about['model']}, {about['dtype']} on {about['device']}, {about['threads']} threads; whole model"
    )
    print_table(
        console,
        [Column(name, right=True) for name in ("tokens", "ms", "tokens/s")],
        [(str(tokens), f"{ms:.2f}", f"{1000 * tokens / ms:.0f}") for tokens, ms in measured.table],
    )
    if (terms := measured.terms) is not None:
        console.print(
            f"context {terms.kv_token_us:.3f} us per KV entry read, {terms.pair_us:.3f} us per prompt pair; "
            f"{terms.row * 1000:.1f} us per row; {terms.fixed:.2f} ms per step and stage",
            highlight=False,
        )

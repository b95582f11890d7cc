"""The flags that describe a local cluster, shared by every command that can start one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tidepipe.cli.numbers import number
from tidepipe_common.settings.cluster import ClusterConfig, default_text
from tidepipe_common.settings.definition import Setting, settings_of

_PANEL = "Local cluster"
"""What a first start may need; whatever is in none of the others."""
_PANELS = {
    "Computing": (
        *("model_code", "fabric", "threads", "memory_gib", "kv_offload", "block_size", "kv_blocks"),
        *("layer_split", "token_mix", "lora", "engine", "tensor_parallel", "engine_args"),
        *("executor", "hardware", "network_gbit"),
    ),
    "Scheduling": (
        *("policy_settings", "prefill_tokens", "max_sequences", "max_running", "reserve", "microbatches"),
        *("profile", "predictor", "length_signal", "prefix_caching", "share_prefixes", "kv_transfer"),
        *("prefill_instances", "prefill_policy_settings", "max_pending"),
        *("macro_min", "macro_max", "scaling_start_s"),
    ),
    "Answers": ("tool_parser", "reasoning_parser", "pooling"),
    "Other places": ("router", "cluster_token", "upstream", "provisioner", "ray_address"),
    "Access": ("tls", "api_keys", "insecure", "allow_host", "allow_origin", "max_connections"),
    "Stored files and responses": (
        *("data_dir", "files_max_bytes", "files_expire_days"),
        *("max_stored_bytes_per_key", "max_stored_items_per_key"),
        *("responses_max_bytes", "responses_max_count", "responses_expire_days"),
        *("responses_background", "responses_background_per_key", "responses_background_bytes"),
    ),
    "Logs and metrics": ("run_dir", "verbose", "log_level", "metrics", "otlp", "journal"),
}
"""Headings of the help, and the settings below each, in their order there."""


def _option(setting: Setting, panel: str) -> Any:
    # Only numbers are read here: the configuration checks flags and files alike.
    kind = list[str] if setting.repeatable else str if setting.kind is Path else setting.kind
    return Annotated[
        kind | None,
        typer.Option(
            setting.flag,
            help=_help(setting),
            rich_help_panel=panel,
            metavar=None if setting.kind is bool else setting.metavar,
            show_default=False,
            parser=None if setting.numbers is None else number(setting.numbers),
        ),
    ]


def _help(setting: Setting) -> str:
    text = setting.help
    if setting.choices:
        text = f"{text} One of {', '.join(setting.choices)}."
    default = default_text(setting.name)
    return f"{text} Default: {default}." if default else text


def _joined(value: Any) -> Any:
    """Of a flag that may be given several times; None if it was not."""
    return (",".join(value) or None) if isinstance(value, list) else value


_CONFIG = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with any of these settings; flags win.",
        rich_help_panel=_PANEL,
        metavar="FILE",
        show_default=False,
    ),
]


def _options() -> dict[str, Any]:
    """All flags: those of no other panel first, then panel by panel."""
    settings = settings_of(ClusterConfig)
    usual = [name for name in settings if not any(name in names for names in _PANELS.values())]
    return {
        **{name: _option(settings[name], _PANEL) for name in usual},
        "config": _CONFIG,
        **{name: _option(settings[name], panel) for panel, names in _PANELS.items() for name in names},
    }


CLUSTER_OPTIONS = _options()


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all cluster flags; it gets those that were used as the mapping `cluster`."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "cluster"
    ]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in CLUSTER_OPTIONS.items()
    ]

    @functools.wraps(command)
    def wrapper(*arguments: Any, **values: Any) -> None:
        cluster = {name: _joined(values.pop(name)) for name in CLUSTER_OPTIONS if name in values}
        command(*arguments, **values, cluster={k: v for k, v in cluster.items() if v is not None})

    signature = inspect.Signature([*own, *shared])
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return wrapper

"""The flags that describe a local cluster, shared by every command that can start one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tidepipe_common.limits import MAX_STORED_BYTES

_PANEL = "Local cluster"


def _option(kind: Any, flag: str, help_text: str, metavar: str | None = None, most: int | None = None) -> Any:
    return Annotated[
        kind | None,
        typer.Option(
            flag, help=help_text, rich_help_panel=_PANEL, metavar=metavar, show_default=False, max=most
        ),
    ]


# Nothing is checked here: the configuration checks flags and files alike.
CLUSTER_OPTIONS: dict[str, Any] = {
    "model": _option(str, "--model", "Folder, .gguf file, pulled model's name or hub id org/name.", "M"),
    "stages": _option(
        int, "--stages", "Stages of each pipeline: one process and device each. Default: 1.", "S"
    ),
    "instances": _option(int, "--instances", "Pipelines. Default: 1.", "N"),
    "host": _option(str, "--host", "Address to listen on. Default: 127.0.0.1.", "H"),
    "http_port": _option(int, "--http-port", "Port of the OpenAI HTTP API; 0: a free one. Default: 0.", "P"),
    "grpc_port": _option(int, "--grpc-port", "Port of the gRPC API; 0: a free one. Default: 0.", "P"),
    "dtype": _option(str, "--dtype", "auto, float32, bfloat16 or float16. Default: auto.", "D"),
    "device": _option(str, "--device", "auto, cpu, cuda or cuda:N. Default: auto.", "D"),
    "policy": _option(
        str,
        "--policy",
        "auto, td-pipe, padg, padg-apart, padg-published, separate or hybrid. Default: auto.",
        "P",
    ),
    "routing": _option(str, "--routing", "Where requests go: padg, least-loaded, round-robin, ..", "R"),
    "ttft_ms": _option(float, "--ttft-ms", "TTFT target of requests that name none.", "MS"),
    "tpot_ms": _option(float, "--tpot-ms", "TPOT target of requests that name none.", "MS"),
    "macro_min": _option(int, "--macro-min", "Instances that a new macro instance begins with.", "N"),
    "macro_max": _option(int, "--macro-max", "Instances of a macro instance at most.", "N"),
    "max_pending": _option(int, "--max-pending", "Requests that may wait at the router.", "N"),
    "provisioner": _option(str, "--provisioner", "Where instances run: local or ray. Default: local.", "P"),
    "ray_address": _option(str, "--ray-address", "Ray cluster to join. Default: auto.", "HOST:PORT"),
    "threads": _option(int, "--threads", "Compute threads of a stage. Default: cores / stages.", "N"),
    "memory_gib": _option(float, "--memory-gib", "Memory of a stage for weights and KV blocks.", "X"),
    "block_size": _option(int, "--block-size", "Tokens per KV block.", "N"),
    "kv_blocks": _option(int, "--kv-blocks", "KV blocks of a stage. Default: what memory allows.", "N"),
    "layer_split": _option(str, "--layer-split", "Layers of each stage. Default: by cost.", "A,B,.."),
    "token_mix": _option(
        str, "--token-mix", "Tokens of a typical prompt and output, to split layers by. Default: 2:1.", "P:O"
    ),
    "prefill_tokens": _option(int, "--prefill-tokens", "Tokens of a step with prompts at most.", "N"),
    "policy_settings": _option(
        str,
        "--policy-settings",
        "The policy's own, such as token_budget=384,extra_batches=1 or switching=intensity:0.05.",
        "NAME=VALUE,..",
    ),
    "max_sequences": _option(int, "--max-sequences", "Sequences accepted by an instance at most.", "N"),
    "max_running": _option(int, "--max-running", "Sequences with KV blocks at a time at most.", "N"),
    "reserve": _option(
        float,
        "--reserve",
        "Share of the KV blocks to keep free for wrong forecasts; below 0 overcommits.",
        "X",
    ),
    "microbatches": _option(int, "--microbatches", "Decode micro-batches in flight.", "N"),
    "allow_download": _option(bool, "--allow-download", "Fetch a hub id that is not on this machine."),
    "tls": _option(str, "--tls", "Certificates of `tidepipe certs make DIR`, or auto: new ones.", "DIR|auto"),
    "api_keys": _option(str, "--api-keys", "Clients need one of these keys (`tidepipe keys add`).", "FILE"),
    "insecure": _option(bool, "--insecure", "Listen beyond this machine without TLS."),
    "files_max_bytes": _option(
        int, "--files-max-bytes", "Of the HTTP API's files. Default: 16 GiB.", "N", MAX_STORED_BYTES
    ),
    "files_expire_days": _option(
        float, "--files-expire-days", "Lifetime of the HTTP API's files; 0: for ever. Default: 30.", "DAYS"
    ),
    "cluster_token": _option(
        str,
        "--cluster-token",
        "Token of a cluster without TLS, to share it with another's. Default: a new one.",
        "FILE",
    ),
    "allow_host": _option(str, "--allow-host", "Names of the HTTP API beside its own, with commas.", "H,.."),
    "allow_origin": _option(
        str, "--allow-origin", "Sites whose pages may call the HTTP API from a browser.", "O,.."
    ),
    "max_connections": _option(int, "--max-connections", "HTTP connections at a time.", "N"),
    "metrics": _option(bool, "--metrics", "Give every process a port with Prometheus metrics."),
    "data_dir": _option(
        str,
        "--data-dir",
        "Folder that keeps files and batches of the HTTP API. Default: they end with the cluster.",
        "DIR",
    ),
    "run_dir": _option(str, "--run-dir", "Folder for the processes' logs. Default: a temporary one.", "DIR"),
    "journal": _option(str, "--journal", "Folder for journals, see `tidepipe sim journal`.", "DIR"),
    "verbose": _option(bool, "--verbose", "Show the processes' logs on stderr."),
    "log_level": _option(str, "--log-level", "debug, info, warning or error. Default: info.", "L"),
    "quantization": _option(
        str, "--quantization", "int8 (weights, activations, KV cache). Default: none.", "Q"
    ),
    "fabric": _option(
        str, "--fabric", "Activations between stages by nccl (GPUs) or gloo. Default: by gRPC.", "F"
    ),
    "executor": _option(str, "--executor", "torch, or emulated (sleeps by --profile). Default: torch.", "E"),
    "predictor": _option(str, "--predictor", "Length model to begin with (tidepipe predictor train).", "DIR"),
    "profile": _option(str, "--profile", "CSV: tokens in a batch, ms of the whole model.", "FILE"),
    "hardware": _option(str, "--hardware", "Emulated device: L20, A100, A800 or H100. Default: L20.", "NAME"),
    "config": _option(Path, "--config", "TOML file with any of these settings; flags win.", "FILE"),
}


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
        cluster = {name: values.pop(name) for name in CLUSTER_OPTIONS if name in values}
        command(*arguments, **values, cluster={k: v for k, v in cluster.items() if v is not None})

    signature = inspect.Signature([*own, *shared])
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return wrapper

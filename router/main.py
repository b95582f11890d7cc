"""The router's process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from router.batches.limits import DEFAULT_FILES_BYTES, DEFAULT_LIFETIME_S, FileLimits
from router.requests.text_port import TextPort
from router.scheduler.mitosis import Bounds
from router.scheduler.policies.catalog import ROUTING_POLICIES
from router.scheduler.slo import INTERACTIVE, SloTarget
from router.service import RouterService
from router.settings import (
    DEFAULT_BATCH_CONCURRENCY,
    DEFAULT_DRAIN_S,
    DEFAULT_MAX_REQUESTS,
    DEFAULT_REMEMBER_S,
    DEFAULT_ROUTING,
    RouterSettings,
    default_model_name,
)
from router.text.tokenizer import TextProcessor
from tidepipe_common.http.site import sites
from tidepipe_common.model_source import resolve_model
from tidepipe_common.rpc.lifecycle import run_service
from tidepipe_common.security.credentials import add_security_options, from_options
from tidepipe_common.telemetry.listener import add_metrics_option
from tidepipe_common.tokenizer_source import leave_out_torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    settings = RouterSettings(
        listen=options.listen,
        model_name=options.model_name or default_model_name(options.model),
        http=options.http,
        predictor=options.predictor,
        provisioner=options.provisioner,
        overall=options.overall,
        advertise=options.advertise,
        name=options.name,
        max_requests=options.max_requests,
        max_pending=options.max_pending,
        remember_s=options.remember_s,
        take_over=options.take_over,
        drain_s=options.drain_s,
        data_dir=options.data_dir,
        batch_concurrency=options.batch_concurrency,
        metrics_port=options.metrics_port,
        routing=options.routing,
        slo=SloTarget(options.ttft_ms / 1000, options.tpot_ms / 1000),
        bounds=Bounds(options.macro_min, options.macro_max),
        api_keys=options.api_keys,
        files=FileLimits(options.files_max_bytes, round(options.files_expire_days * 86_400)),
        site=sites(options.allow_host, options.allow_origin),
        connections=options.max_connections,
        connections_per_address=options.max_connections_per_address,
    )

    def load_text() -> TextPort:
        path = resolve_model(options.model)
        if path.is_dir():  # reading a GGUF file's tokenizer does need PyTorch
            leave_out_torch()
        return TextProcessor.load(path)

    service = RouterService(settings, load_text)
    return run_service("router", service.run, log_level=options.log_level, credentials=from_options(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="router", description="Takes requests and spreads them over instances."
    )
    add = parser.add_argument
    add("--listen", required=True, metavar="HOST:PORT", help="gRPC address; port 0: any")
    add("--model", required=True, help="folder, .gguf file, pulled model's name or hub id: the tokenizer's")
    add("--model-name", default="", metavar="NAME", help="name that clients use; default: the model's")
    add("--http", default="", metavar="HOST:PORT", help="address of the OpenAI-compatible API")
    add("--overall", default="", metavar="HOST:PORT", help="router above: be one of its instances")
    add("--advertise", default="", metavar="HOST:PORT", help="where it reaches us; default: --listen")
    add("--name", default="", metavar="NAME", help="our name there; default: one of our own")
    add("--provisioner", default="", metavar="HOST:PORT", help="starts and stops instances")
    add("--predictor", default="", metavar="HOST:PORT", help="shown in the cluster's status")
    add(
        "--max-requests",
        type=_positive_int,
        default=DEFAULT_MAX_REQUESTS,
        metavar="N",
        help="requests accepted at a time",
    )
    add(
        "--max-pending",
        type=_positive_int,
        default=DEFAULT_MAX_REQUESTS,
        metavar="N",
        help="of these, answers that may wait for an instance",
    )
    add("--routing", default=DEFAULT_ROUTING, choices=ROUTING_POLICIES, help="where requests go")
    add("--ttft-ms", type=_positive_float, default=1000 * INTERACTIVE.ttft_s, metavar="MS",
        help="TTFT target of requests that name none")  # fmt: skip
    add("--tpot-ms", type=_positive_float, default=1000 * INTERACTIVE.tpot_s, metavar="MS",
        help="TPOT target of requests that name none")  # fmt: skip
    add("--macro-min", type=_positive_int, default=Bounds().lower, metavar="N",
        help="instances that a new macro instance begins with")  # fmt: skip
    add("--macro-max", type=_positive_int, default=Bounds().upper, metavar="N",
        help="instances of a macro instance at most; one more splits it")  # fmt: skip
    add(
        "--remember-s",
        type=_positive_float,
        default=DEFAULT_REMEMBER_S,
        metavar="S",
        help="how long an ended request can be asked for",
    )
    add(
        "--take-over",
        action="store_true",
        help="of a router that listens here; SIGUSR1 then tells it to leave",
    )
    add("--drain-s", type=_positive_float, default=DEFAULT_DRAIN_S, metavar="S",
        help="how long answers may go on after another router has taken over")  # fmt: skip
    add_metrics_option(parser)
    add("--data-dir", default="", metavar="DIR", help="folder that keeps files and batches of the HTTP API")
    add(
        "--batch-concurrency",
        type=_positive_int,
        default=DEFAULT_BATCH_CONCURRENCY,
        metavar="N",
        help="requests of batches in flight at most",
    )
    add("--files-max-bytes", type=_positive_int, default=DEFAULT_FILES_BYTES, metavar="N",
        help="of all files of the HTTP API together, answers of batches included")  # fmt: skip
    add("--files-expire-days", type=_days, default=DEFAULT_LIFETIME_S / 86_400, metavar="DAYS",
        help="lifetime of files that bring none (expires_after); 0: for ever")  # fmt: skip
    add("--allow-host", action="append", metavar="NAME",
        help="name by which the HTTP API is called too; *.NAME: all below it")  # fmt: skip
    add("--allow-origin", action="append", metavar="ORIGIN",
        help="site whose pages may call the HTTP API, such as https://chat.example.com")  # fmt: skip
    add("--max-connections", type=_positive_int, metavar="N",
        help="HTTP connections at a time; default: by the limit of open files")  # fmt: skip
    add("--max-connections-per-address", type=_positive_int, metavar="N",
        help="of these, from one address; default: half, and all from this machine")  # fmt: skip
    add_security_options(parser)
    add("--api-keys", type=Path, metavar="FILE", help="clients need one of these keys (`tidepipe keys add`)")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("must be above 0 and below a million")
    return value


def _days(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e5:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value

"""`python -m stage_worker`: one worker for one device."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from stage_worker.api.servicer import StageServicer, max_message_bytes, start_serving
from stage_worker.executors.protocol import Backend
from stage_worker.telemetry import export_metrics
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.credentials import add_security_options, from_options
from tidepipe_common.telemetry.listener import add_metrics_option, serve_metrics
from tidepipe_common.telemetry.telemetry import Telemetry


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line of the service."""
    parser = argparse.ArgumentParser("python -m stage_worker", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; port 0 picks a free one")
    parser.add_argument(
        "--model", required=True, help="folder with safetensors, GGUF file, pulled name or hub id"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--quantization", default=None, choices=["int8"], help="default: none")
    parser.add_argument("--threads", type=int, default=None, help="compute threads (default: all cores)")
    parser.add_argument(
        "--memory-gib", type=float, default=None, help="budget for weights and KV blocks together"
    )
    parser.add_argument(
        "--workers-on-device", type=int, default=1, help="stage workers that share this GPU's memory"
    )
    parser.add_argument(
        "--fabric",
        default=None,
        choices=["nccl", "gloo"],
        help="activations to neighbours on the same host go by this instead of RPC",
    )
    parser.add_argument("--executor", default="torch", choices=["torch", "emulated"])
    parser.add_argument("--profile", type=Path, default=None, help="emulated: CSV of tokens, milliseconds")
    parser.add_argument("--hardware", default="l20", help="emulated: l20, a100, a800 or h100")
    parser.add_argument("--allow-download", action="store_true", help="fetch a hub id that is not cached")
    add_metrics_option(parser)
    add_security_options(parser)
    parser.add_argument("--log-level", default="info")
    return parser.parse_args(arguments)


def make_backend(options: argparse.Namespace) -> Backend:
    """Build what computes; imports torch, so the command line's errors come without that wait."""
    budget = None if options.memory_gib is None else int(options.memory_gib * 2**30)
    if options.executor == "emulated":
        from stage_worker.executors.emulated import EmulatedBackend

        return EmulatedBackend(
            options.model,
            device=options.hardware,
            profile=options.profile,
            memory_budget=budget,
            allow_download=options.allow_download,
        )
    from stage_worker.executors.torch_backend import TorchBackend

    backend: Backend = TorchBackend(
        options.model,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
        memory_budget=budget,
        threads=options.threads,
        allow_download=options.allow_download,
        fabric=options.fabric,
        workers_on_device=options.workers_on_device,
    )
    return backend


async def serve(options: argparse.Namespace, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop."""
    backend = await asyncio.to_thread(make_backend, options)
    about = backend.description
    telemetry = Telemetry()
    server = RpcServer(
        options.listen,
        max_message_bytes=max_message_bytes(about.shape.hidden, about.dtype),
        telemetry=telemetry,
    )
    servicer = StageServicer(backend)
    export_metrics(telemetry, servicer)
    address = await start_serving(server, servicer)
    await server.set_serving(True)
    async with serve_metrics(telemetry, options.listen, options.metrics_port) as metrics:
        lifecycle.announce_ready(address, metrics)
        await lifecycle.stopping.wait()
    await servicer.close()
    await server.stop(grace_s=2.0)


def main() -> int:
    """Entry point; the exit code."""
    options = parse()
    return run_service(
        "stage_worker",
        lambda lifecycle: serve(options, lifecycle),
        log_level=options.log_level,
        credentials=from_options(options),
        computes=True,
    )

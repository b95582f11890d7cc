"""`python -m stage_worker`: one worker for one device."""

from __future__ import annotations

import asyncio

from stage_worker.api.servicer import StageServicer, max_message_bytes, start_serving
from stage_worker.executors.protocol import Backend
from stage_worker.telemetry import export_metrics
from tidepipe_common.errors import ConfigError
from tidepipe_common.rpc.lifecycle import Lifecycle, run_service, settings_or_exit
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.settings.adapters import parse_adapters
from tidepipe_common.settings.offload import parse_offload
from tidepipe_common.settings.stage_worker import StageWorkerSettings
from tidepipe_common.telemetry.listener import serve_metrics
from tidepipe_common.telemetry.otlp import open_traces
from tidepipe_common.telemetry.telemetry import Telemetry


def make_backend(settings: StageWorkerSettings) -> Backend:
    """Build what computes; imports torch, so the command line's errors come without that wait."""
    budget = None if settings.memory_gib is None else int(settings.memory_gib * 2**30)
    offload = parse_offload(settings.kv_offload) if settings.kv_offload else None
    adapters = parse_adapters(settings.lora) if settings.lora else ()
    if settings.executor == "emulated":
        if adapters:
            raise ConfigError("--lora is for --executor torch; an emulated worker computes nothing")
        from stage_worker.executors.emulated import EmulatedBackend

        return EmulatedBackend(
            settings.model,
            device=settings.hardware,
            profile=settings.profile,
            memory_budget=budget,
            allow_download=settings.allow_download,
            offload_bytes=offload.nbytes if offload is not None else 0,
            network_bytes_per_s=settings.network_gbit * 1e9 / 8 if settings.network_gbit else None,
        )
    from stage_worker.executors.torch_backend import TorchBackend

    backend: Backend = TorchBackend(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        memory_budget=budget,
        threads=settings.threads,
        allow_download=settings.allow_download,
        fabric=settings.fabric,
        workers_on_device=settings.workers_on_device,
        offload=offload,
        adapters=adapters,
        model_code=settings.model_code,
    )
    return backend


async def serve(settings: StageWorkerSettings, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop."""
    backend = await asyncio.to_thread(make_backend, settings)
    about = backend.description
    telemetry = Telemetry()
    server = RpcServer(
        settings.listen,
        max_message_bytes=max_message_bytes(about.activation_width, about.dtype),
        telemetry=telemetry,
    )
    async with open_traces(settings.otlp, "stage-worker", settings.listen) as traces:
        servicer = StageServicer(backend, traces=traces)
        export_metrics(telemetry, servicer)
        address = await start_serving(server, servicer)
        await server.set_serving(True)
        async with serve_metrics(telemetry, settings.listen, settings.metrics_port) as metrics:
            lifecycle.announce_ready(address, metrics)
            await lifecycle.stopping.wait()
        await servicer.close()
    await server.stop(grace_s=2.0)


def main() -> int:
    """Entry point; the exit code."""
    settings = settings_or_exit(StageWorkerSettings)
    return run_service(
        "stage_worker",
        lambda lifecycle: serve(settings, lifecycle),
        log_level=settings.log_level,
        credentials=settings.credentials,
        computes=True,
    )

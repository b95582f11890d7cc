"""A router inside the test's own process, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from launcher.ports import choose_port
from router.models.models import LoadText
from router.service import RouterService
from tests.fakes.text import ByteText
from tidepipe.v1 import inference_pb2_grpc
from tidepipe_common.dialects import AUTO
from tidepipe_common.errors import ModelError
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.lifecycle import Lifecycle
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.types.text_choices import TextChoices


@dataclass
class RunningRouter:
    """address, http: HOST:PORT."""

    service: RouterService
    address: str
    http: str
    stub: inference_pb2_grpc.InferenceServiceAsyncStub
    lifecycle: Lifecycle


class _Lifecycle(Lifecycle):
    def __init__(self) -> None:
        super().__init__()
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def announce_ready(self, address: str, metrics: str = "") -> None:
        self.address.set_result(address)


def byte_text(model: str, choices: TextChoices) -> ByteText:
    """The tokenizer of every model but those that are called so."""
    if "nowhere" in model:
        raise ModelError(f"{model}: no such file or folder")
    return ByteText("json" if choices.tool_parser == AUTO else choices.tool_parser)


@contextlib.asynccontextmanager
async def running_router(load_text: LoadText = byte_text, **settings: Any) -> AsyncIterator[RunningRouter]:
    """Ready, but without instances; stopped in order at the end."""
    http = f"127.0.0.1:{choose_port('127.0.0.1', 0)}"
    defaults: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "model": "fake",
        "http": http,
        "stop_grace_s": 0.2,
    }
    service = RouterService(RouterSettings(**{**defaults, **settings}), load_text)
    lifecycle = _Lifecycle()
    async with asyncio.TaskGroup() as group:
        group.create_task(service.run(lifecycle))
        address = await lifecycle.address
        async with open_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            yield RunningRouter(service, address, http, stub, lifecycle)
        lifecycle.stopping.set()


def is_ready(router: RunningRouter, instance_id: str) -> bool:
    """Would routing give it requests?"""
    view = router.service.dispatcher.scheduler.view(instance_id)
    return view is not None and view.ready

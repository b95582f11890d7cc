"""TidePipe: serve large language models on commodity GPU nodes.

    import tidepipe

    with tidepipe.connect("127.0.0.1:50051") as client:
        print(client.generate("The capital of France is", max_tokens=16, temperature=0).text)

Names are loaded when they are first used: services import the stubs in `tidepipe.v1` from this package
and must not pay for the SDK.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidepipe.client.async_client import AsyncClient
    from tidepipe.client.async_stream import AsyncStream
    from tidepipe.client.errors import DeadlineExceededError, RequestFailedError
    from tidepipe.client.retry import RetryPolicy
    from tidepipe.client.secured import client_credentials
    from tidepipe.client.status import ClusterStatus, InstanceStatus
    from tidepipe.client.sync_client import Client, connect
    from tidepipe.client.sync_stream import Stream
    from tidepipe.client.types import (
        BatchItem,
        BatchResult,
        Completion,
        ModelInfo,
        StreamEvent,
    )
    from tidepipe_common.errors import (
        ConfigError,
        IncompatibleError,
        InvalidRequestError,
        ModelError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        TidePipeError,
        UnauthenticatedError,
        UnavailableError,
    )
    from tidepipe_common.types.request import Answer, ChatTurn, Usage
    from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams, TokenLogprob

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "BatchItem",
    "BatchResult",
    "ChatTurn",
    "Client",
    "ClusterStatus",
    "Completion",
    "ConfigError",
    "DeadlineExceededError",
    "FinishReason",
    "IncompatibleError",
    "InstanceStatus",
    "InvalidRequestError",
    "ModelError",
    "ModelInfo",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "PositionLogprobs",
    "RequestFailedError",
    "RetryPolicy",
    "SamplingParams",
    "Stream",
    "StreamEvent",
    "TidePipeError",
    "TokenLogprob",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "client_credentials",
    "connect",
]

_MODULES = {
    "tidepipe_common.errors": (
        "ConfigError IncompatibleError InvalidRequestError ModelError NotFoundError OverloadedError "
        "PermissionDeniedError TidePipeError UnauthenticatedError UnavailableError"
    ),
    "tidepipe_common.types.request": "Answer ChatTurn Usage",
    "tidepipe_common.types.sampling": "FinishReason PositionLogprobs SamplingParams TokenLogprob",
    "tidepipe.client.async_client": "AsyncClient",
    "tidepipe.client.async_stream": "AsyncStream",
    "tidepipe.client.errors": "DeadlineExceededError RequestFailedError",
    "tidepipe.client.retry": "RetryPolicy",
    "tidepipe.client.secured": "client_credentials",
    "tidepipe.client.status": "ClusterStatus InstanceStatus",
    "tidepipe.client.sync_client": "Client connect",
    "tidepipe.client.sync_stream": "Stream",
    "tidepipe.client.types": "BatchItem BatchResult Completion ModelInfo StreamEvent",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tidepipe' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

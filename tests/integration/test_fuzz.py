"""Whatever the contract can say, to every service of a running cluster: it is refused, and all goes on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from router.api.http.batches import BatchBody
from tests.cluster_logs import tracebacks
from tests.fakes.stage_backend import FakeBackend
from tests.integration.test_stage_worker import worker
from tests.messages import messages, spoiled
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.errors import DeadlineExceededError
from tidepipe.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    controller_pb2,
    inference_pb2,
    predictor_pb2,
    router_pb2,
    sampling_pb2,
    stage_pb2,
)
from tidepipe_common.messages.body import MessagesBody
from tidepipe_common.openai.bodies import ChatBody, CompletionBody
from tidepipe_common.openai.embeddings import EmbeddingsBody, RerankBody
from tidepipe_common.openai.tokens import DetokenizeBody, TokenizeBody
from tidepipe_common.responses.body import ResponsesBody
from tidepipe_common.rpc.channel import open_channel, open_sync_channel
from tidepipe_common.security.credentials import Credentials

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
"""More of them: FUZZ_EXAMPLES=1000 (and --timeout=0)."""
UNARY_S, STREAM_S = 20.0, 0.2
DEFECTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
CALL_OTHERS = {"MoveInstance": "does not take it", "RegisterInstance": "does not answer"}
"""Methods that call whom they are told to, who may rightly not be there; what their UNAVAILABLE then says."""
STARTS_PROCESSES = {"ScaleInstances", "SetAutoScaling"}
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # A finding may be a hang: shrinking would wait for it a hundred times.
    phases=[Phase.generate],
)

LISTS = ("files", "batches", "models", "responses")
NEW = "new"
"""Stands for a request id that has never been used."""
_ASKED = inference_pb2.InferenceRequest(
    request_id=NEW, text="hello", sampling=sampling_pb2.SamplingParams(max_tokens=3)
)
_SEQUENCE = controller_pb2.SequenceSpec(
    sequence_id="s", prompt_token_ids=[1, 2, 3], sampling=sampling_pb2.SamplingParams(max_tokens=3)
)
GOOD: tuple[Message, ...] = (
    inference_pb2.GenerateRequest(request=_ASKED),
    inference_pb2.SubmitRequest(request=_ASKED),
    controller_pb2.SubmitSequencesRequest(router_id="r", sequences=[_SEQUENCE]),
    predictor_pb2.PredictRequest(requests=[predictor_pb2.RequestFeatures(key="k", prompt_tokens=3)]),
    router_pb2.RegisterInstanceRequest(
        handle=router_pb2.InstanceHandle(instance_id="nobody", controller_address="127.0.0.1:1"),
        lease_ms=5_000,
    ),
)
"""What is worth spoiling: most of what is drawn at random does not get past the first check."""


def methods(file: FileDescriptor) -> Iterator[MethodDescriptor]:
    for service in file.services_by_name.values():
        yield from (method for method in service.methods if method.name not in STARTS_PROCESSES)


def send(channel: grpc.Channel, method: MethodDescriptor, sent: list[Message]) -> grpc.StatusCode:
    """How the call ends; one that streams is listened to for a moment."""
    for message in sent:
        asks = isinstance(message, (inference_pb2.GenerateRequest, inference_pb2.SubmitRequest))
        if asks and message.request.request_id == NEW:
            message.request.request_id = uuid4().hex
    streams = method.client_streaming or method.server_streaming
    kind = f"{'stream' if method.client_streaming else 'unary'}_stream"
    call = getattr(channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    answers = call(
        iter(sent) if method.client_streaming else sent[0], timeout=STREAM_S if streams else UNARY_S
    )
    try:
        for _ in islice(answers, 3):
            pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        assert streams or code is not grpc.StatusCode.DEADLINE_EXCEEDED, f"{method.name} hangs"
        details: str = error.details()  # type: ignore[attr-defined]
        if code is grpc.StatusCode.UNAVAILABLE and method.name in CALL_OTHERS:
            assert CALL_OTHERS[method.name] in details
            return code
        assert code not in DEFECTS, (method.full_name, code, details)
        return code
    finally:
        answers.cancel()
    return grpc.StatusCode.OK


def fuzz(address: str, file: FileDescriptor, credentials: Credentials | None = None) -> None:
    """All methods of a service, called by who may."""
    with open_sync_channel(address, credentials) as channel:
        for method in methods(file):
            kind = messages(method.input_type)
            for good in GOOD:
                if good.DESCRIPTOR is method.input_type:
                    kind |= spoiled(good)
            sent = st.lists(kind, min_size=1, max_size=3 if method.client_streaming else 1)
            SETTINGS(given(sent)(sender(channel, method)))()


def sender(channel: grpc.Channel, method: MethodDescriptor) -> Callable[[list[Message]], None]:
    def check(sent: list[Message]) -> None:
        send(channel, method, sent)

    return check


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=10)
"""With surrogates and control characters."""
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def bodies(model: Any, good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good body, some of whose fields say anything."""
    fields = st.sampled_from(sorted(model.model_fields))
    short = {"max_tokens": 3} if "max_tokens" in model.model_fields else {}
    return st.dictionaries(fields, JSON, max_size=4).map(lambda wrong: good | short | wrong)


ITEMS = JSON | st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["message", "reasoning", "function_call", "function_call_output", "item_reference"]
        )
    },
    optional=dict.fromkeys(
        ("id", "role", "content", "summary", "call_id", "name", "arguments", "output"), JSON
    ),
)
TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]) | JSON,
        "content": JSON
        | st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from(["text", "thinking", "tool_use", "tool_result"]) | JSON},
                optional=dict.fromkeys(
                    ("text", "thinking", "id", "tool_use_id", "name", "input", "content"), JSON
                ),
            ),
            max_size=2,
        ),
    }
)
TOOLS = JSON | st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom", "namespace", "web_search"])},
    optional=dict.fromkeys(("name", "description", "parameters", "strict", "format", "tools"), JSON),
)
ODD = st.sampled_from(
    [
        *(b"1e400", b"-1e400", b"-0.0", b"5.0", b"1" + b"0" * 400, b"9" * 5000, b"NaN", b"-Infinity"),
        *(
            b'"\\ud800"',
            b'"\xed\xa0\x80"',
            b'"\\u0000\\u001b[31m\\n"',
            b'"\xff"',
            b'"\\u2028"',
            b'{"\\udfff": 1}',
        ),
        *(b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b"[" * 99 + b"]" * 99),
        *(b'{"a": 1, "a": 2}', b'"' + b"x" * 100_000 + b'"', b""),
    ]
)
"""Values as they may stand in a body, JSON or not."""


def odd_bodies(model: Any, good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A good body with one more field that says something odd."""
    fields = st.sampled_from(
        [*sorted(model.model_fields.keys() - good.keys()), "unheard", "metadata", "user"]
    )
    begin = json.dumps(good).encode()[:-1]
    return st.builds(lambda name, odd: begin + b', "%s": %s}' % (name.encode(), odd), fields, ODD)


def fuzz_http(address: str) -> None:
    """Completions, chats, batches and paths."""
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    response = {"input": "hi", "max_output_tokens": 3}
    with httpx.Client(base_url=f"http://{address}", timeout=UNARY_S, trust_env=False) as client:

        def post(path: str) -> Callable[[Any], None]:
            def check(body: Any) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                answer = client.post(path, content=content, headers={"content-type": "application/json"})
                assert answer.status_code < 500, (path, body, answer.text)
                assert answer.status_code == 200 or answer.json()["error"]["message"], answer.text

            return check

        for path, strategy in (
            ("/v1/completions", bodies(CompletionBody, {"prompt": "hi", "max_tokens": 3})),
            ("/v1/chat/completions", bodies(ChatBody, chat | {"max_tokens": 3})),
            ("/v1/chat/completions", st.fixed_dictionaries({"messages": st.lists(JSON, max_size=2)})),
            ("/v1/completions", odd_bodies(CompletionBody, {"prompt": "hi", "max_tokens": 3})),
            ("/v1/chat/completions", odd_bodies(ChatBody, chat | {"max_tokens": 3})),
            ("/v1/responses", bodies(ResponsesBody, response)),
            ("/v1/responses", odd_bodies(ResponsesBody, response)),
            (
                "/v1/responses",
                st.fixed_dictionaries(
                    {"input": st.lists(ITEMS, max_size=3), "tools": st.lists(TOOLS, max_size=2)}
                ),
            ),
            ("/v1/messages", bodies(MessagesBody, chat | {"max_tokens": 3})),
            ("/v1/messages/count_tokens", st.fixed_dictionaries({"messages": st.lists(TURNS, max_size=3)})),
            ("/v1/embeddings", bodies(EmbeddingsBody, {"input": "hi"})),
            ("/v1/embeddings", odd_bodies(EmbeddingsBody, {"input": ["hi", [1, 2]]})),
            ("/v1/rerank", bodies(RerankBody, {"query": "a", "documents": ["b", "c"]})),
            ("/v2/rerank", odd_bodies(RerankBody, {"query": "a", "documents": ["b"]})),
            ("/tokenize", bodies(TokenizeBody, {"prompt": "hi"})),
            ("/v1/tokenize", odd_bodies(TokenizeBody, chat)),
            ("/detokenize", bodies(DetokenizeBody, {"tokens": [1, 2]})),
            ("/v1/detokenize", odd_bodies(DetokenizeBody, {"model": None})),
            ("/v1/completions", st.fixed_dictionaries({"prompt": st.lists(JSON, max_size=3), "n": JSON})),
            ("/v1/batches", JSON),
            ("/v1/batches", odd_bodies(BatchBody, {"input_file_id": "x"})),
            (
                "/v1/batches",
                st.fixed_dictionaries({"input_file_id": JSON, "endpoint": JSON, "metadata": JSON}),
            ),
        ):
            SETTINGS(given(strategy)(post(path)))()

        @SETTINGS
        @given(st.sampled_from(LISTS), st.text(max_size=20), st.text(max_size=9))
        def look_up(what: str, name: str, value: str) -> None:
            for url in (
                httpx.URL(f"/v1/{what}").join(f"{what}/x"),
                f"/v1/{what}",
                inputs,
            ):
                answer = client.get(url, params={"after": name, "limit": value, "purpose": value})
                assert answer.status_code < 500, (url, name, value, answer.text)

        kept = client.post("/v1/responses", json=response).json()["id"]
        inputs = f"/v1/responses/{kept}/input_items"
        look_up()


async def undrain(address: str) -> None:
    """Among all the nonsense somebody may have said, rightly, to drain or remove the only instance.

    Its controller registers it again by itself.
    """
    resume = admin_pb2.DrainInstanceRequest(instance_id="instance-0", resume=True)
    async with open_channel(address) as channel, asyncio.timeout(60):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        while True:
            try:
                await stub.DrainInstance(resume, timeout=UNARY_S)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND, error
                await asyncio.sleep(0.2)
            else:
                return


async def test_a_cluster_refuses_nonsense_and_goes_on(model_path: Path) -> None:
    config = ClusterConfig(model=str(model_path), executor="emulated")
    async with LocalCluster(config) as cluster:
        addresses = {child.name: child.address for child in cluster.children}
        await asyncio.to_thread(fuzz_http, cluster.http_address)
        for name, file in (
            ("router", inference_pb2.DESCRIPTOR),
            ("predictor", predictor_pb2.DESCRIPTOR),
            ("controller-0", controller_pb2.DESCRIPTOR),
            ("router", router_pb2.DESCRIPTOR),
            ("router", admin_pb2.DESCRIPTOR),
        ):
            await asyncio.to_thread(fuzz, addresses[name], file, cluster.service_credentials)
        await undrain(cluster.grpc_address)
        async with AsyncClient(cluster.grpc_address) as client:
            try:
                result = await client.generate([1, 2, 3], temperature=0, max_tokens=3, timeout=60)
            except DeadlineExceededError:
                pytest.fail(f"no answer; the cluster stands so: {await client.status()}")
        assert len(result.token_ids) == 3
        assert not [child.name for child in cluster.children if child.restart_count]
        assert tracebacks(cluster) == []


async def test_a_stage_worker_refuses_nonsense() -> None:
    async with worker(FakeBackend()) as address:
        await asyncio.to_thread(fuzz, address, stage_pb2.DESCRIPTOR)

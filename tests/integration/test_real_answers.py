"""A user's view of a real cluster: sensible answers, every sampling option, clear refusals, nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.errors import InvalidRequestError, NotFoundError
from tidepipe_common.rpc.channel import is_serving, open_channel
from tidepipe_common.types.sampling import FinishReason

pytestmark = [
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(model_path: Path) -> AsyncIterator[LocalCluster]:
    """Two stages in float32."""
    config = ClusterConfig(model=str(model_path), stages=2, dtype="float32")
    async with LocalCluster(config) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """Connected to the cluster's router."""
    async with AsyncClient(cluster.grpc_address) as connected:
        yield connected


async def test_chat_answers_and_ends_by_itself(client: AsyncClient) -> None:
    """The model's own template, its own end-of-sequence token."""
    answer = await client.chat(FRANCE, temperature=0, max_tokens=60)
    assert "Paris" in answer.text
    assert answer.finish_reason is FinishReason.STOP
    assert answer.usage.output_tokens == len(answer.token_ids) < 60


async def test_seed_makes_answers_repeatable_whatever_else_runs(client: AsyncClient) -> None:
    """Alone, and among others: the same; n answers differ from each other."""
    options = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 24, "seed": 7, "ignore_eos": True}
    alone = await client.generate("The tide", **options, n=2)
    others = [client.generate(f"Count to {i}:", temperature=1.0, max_tokens=30) for i in range(12)]
    *_, crowded = await asyncio.gather(*others, client.generate("The tide", **options, n=2))
    assert [a.token_ids for a in alone.answers] == [a.token_ids for a in crowded.answers]
    assert alone.answers[0].token_ids != alone.answers[1].token_ids


async def test_stop_strings_logprobs_and_bias(client: AsyncClient) -> None:
    """A stop string cuts the text before it; log-probabilities come for each token; bias decides."""
    whole = await client.chat(FRANCE, temperature=0, max_tokens=30)
    cut = await client.chat(FRANCE, temperature=0, max_tokens=30, stop=("of Fra",), logprobs=3)
    assert cut.text == whole.text.partition("of Fra")[0]
    answer = cut.answers[0]
    assert (answer.finish_reason, answer.stopped_by) == (FinishReason.STOP, "of Fra")
    assert len(answer.logprobs) == len(answer.token_ids)
    assert all(len(position.top) == 3 for position in answer.logprobs)
    assert all(position.chosen == position.top[0] for position in answer.logprobs)
    forced = await client.generate("Say it", temperature=0, max_tokens=5, logit_bias={1234: 100.0})
    assert set(forced.token_ids) == {1234}


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        ([5, 49_152], {}, "vocabulary"),
        ([5] * 9000, {}, "8192"),
        ("x", {"max_tokens": 0}, "max_tokens must be at least 1"),
        ("x", {"max_tokens": 100_000}, "8192"),
        ("x", {"temperature": -1.0}, "temperature"),
        ("x", {"top_p": 0.0}, "top_p"),
        ("x", {"stop_token_ids": (60_000,)}, "vocabulary"),
        ("x", {"model": "another-model"}, "another-model"),
    ],
)
async def test_bad_requests_are_refused_with_the_reason(
    client: AsyncClient, prompt: str | list[int], options: dict[str, object], message: str
) -> None:
    """Each names what is wrong, and the cluster goes on."""
    with pytest.raises((InvalidRequestError, NotFoundError), match=message):
        await client.generate(prompt, **options)


async def test_cancelled_requests_give_their_blocks_back(client: AsyncClient) -> None:
    """Leaving a stream early ends the request in the pipeline, too."""
    async with client.stream("Once upon a time", max_tokens=2000, ignore_eos=True) as stream:
        async for event in stream:
            if event.token_ids:
                break
    for _ in range(100):
        instance = (await client.status()).instances[0].status
        assert instance is not None
        if instance.kv_blocks_free == instance.kv_blocks_total:
            break
        await asyncio.sleep(0.05)
    assert (instance.running, instance.waiting) == (0, 0)
    assert instance.kv_blocks_free == instance.kv_blocks_total


async def test_every_service_has_health_and_reflection(cluster: LocalCluster) -> None:
    """A generic client finds its way on every port."""
    expected = {
        "predictor": "PredictorService",
        "router": "InferenceService",
        "controller-0": "ControllerService",
        "stage-worker-0-0": "StageService",
        "stage-worker-0-1": "StageService",
    }
    assert {child.name for child in cluster.children} == set(expected)
    for child in cluster.children:
        async with open_channel(child.address) as channel:
            assert await is_serving(channel), child.name
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            replies = [r async for r in stub.ServerReflectionInfo(iter([request]), timeout=5)]
            names = {service.name for service in replies[0].list_services_response.service}
            assert f"tidepipe.v1.{expected[child.name]}" in names

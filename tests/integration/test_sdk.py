"""The client SDK against a router that breaks off, refuses, stalls and restarts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sdk_fake_router import TEXT, TOKENS, WORDS, FakeRouter

import tidepipe

Read = Callable[..., list[tidepipe.StreamEvent]]


def read_sync(address: str, limit: int | None = None, **options: Any) -> list[tidepipe.StreamEvent]:
    """Events of one stream; leaves after `limit` of them."""
    with tidepipe.Client(address) as client:
        events = []
        for event in client.stream("hello", **options):
            events.append(event)
            if len(events) == limit:
                break
        return events


def read_async(address: str, limit: int | None = None, **options: Any) -> list[tidepipe.StreamEvent]:
    """As read_sync, with the asynchronous client."""

    async def read() -> list[tidepipe.StreamEvent]:
        events = []
        async with tidepipe.AsyncClient(address) as client:
            async for event in client.stream("hello", **options):
                events.append(event)
                if len(events) == limit:
                    break
        return events

    return asyncio.run(read())


@pytest.fixture(params=[read_sync, read_async])
def read(request: pytest.FixtureRequest) -> Read:
    """Both clients."""
    reader: Read = request.param
    return reader


def joined(events: list[tidepipe.StreamEvent]) -> tuple[str, tuple[int, ...]]:
    """Text and tokens of all events."""
    return "".join(event.text for event in events), tuple(
        token for event in events for token in event.token_ids
    )


@pytest.mark.parametrize("repeats_all", [False, True])
def test_a_stream_that_breaks_off_goes_on_without_gap_or_repeat(read: Read, repeats_all: bool) -> None:
    with FakeRouter() as router:
        router.cut_after = [0, 3, 3, 7]
        router.repeats_all = repeats_all
        events = read(router.address)
    assert joined(events) == (TEXT, TOKENS)
    assert events[-1].finish_reason is tidepipe.FinishReason.LENGTH
    assert len({request.request.request_id for request in router.requests}) == 1
    # The same draws are asked for each time, so a router that forgot the request gives the same answer.
    seeds = {request.request.sampling.seed for request in router.requests}
    assert len(seeds) == 1
    assert router.requests[0].request.sampling.HasField("seed")


def test_a_restarted_router_is_found_again(read: Read) -> None:
    first = FakeRouter()
    first.step_s = 0.05
    revived: list[FakeRouter] = []

    def restart() -> None:
        while not first.requests:
            time.sleep(0.01)
        time.sleep(0.2)
        first.stop()
        time.sleep(0.2)
        revived.append(FakeRouter(first.address))

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        assert joined(read(first.address)) == (TEXT, TOKENS)
    finally:
        thread.join()
        for router in revived:
            router.stop()


def test_a_full_queue_is_waited_for_and_a_bad_request_is_not(read: Read) -> None:
    with FakeRouter() as router:
        router.full_calls = 3
        assert joined(read(router.address)) == (TEXT, TOKENS)
        with tidepipe.connect(router.address) as client:
            router.full_calls = 0
            calls = len(router.requests)
            with pytest.raises(tidepipe.InvalidRequestError, match="this prompt is bad") as caught:
                client.generate("bad")
            assert caught.value.param == "prompt"
            assert len(router.requests) == calls + 1


def test_a_prompt_beyond_the_limit_of_messages_is_not_tried_again() -> None:
    with FakeRouter() as router, tidepipe.Client(router.address) as client:
        with pytest.raises(tidepipe.InvalidRequestError, match="may have 8388608 bytes"):
            client.generate("x" * 20_000_000)
        assert not router.requests


def test_leaving_a_stream_or_running_out_of_time_cancels_the_request(read: Read) -> None:
    with FakeRouter() as router:
        router.step_s = 0.03
        assert len(read(router.address, limit=2, request_id="left")) == 2
        with pytest.raises(tidepipe.DeadlineExceededError, match=r"within 0\.1 s"):
            read(router.address, request_id="late", timeout=0.1)
        assert set(router.cancelled) == {"left", "late"}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_batch_is_bounded_and_survives_bad_prompts(kind: str) -> None:
    prompts = ["a", "bad", [1, 2, 3], [], [{"role": "user", "content": "hi"}], *["x"] * 7]

    async def run_async(address: str) -> list[tidepipe.BatchResult]:
        async with tidepipe.AsyncClient(address) as client:
            return [result async for result in client.generate_batch(prompts, concurrency=3)]

    with FakeRouter() as router:
        router.step_s = 0.002
        if kind == "async":
            results = asyncio.run(run_async(router.address))
        else:
            with tidepipe.Client(router.address) as client:
                results = list(client.generate_batch(prompts, concurrency=3))
        assert router.peak <= 3
    assert sorted(result.index for result in results) == list(range(len(prompts)))
    failed = {result.index: str(result.error) for result in results if result.error}
    assert failed == {1: "this prompt is bad", 3: "the prompt is empty"}
    assert all(result.unwrap().text == TEXT for result in results if result.index not in failed)
    assert results[-1].unwrap().usage.output_tokens == len(WORDS)


def test_a_part_of_an_answer_is_no_completion() -> None:
    with FakeRouter() as router, tidepipe.Client(router.address) as client:
        router.cancels = 1
        with pytest.raises(tidepipe.TidePipeError, match="was cancelled before its answer was complete"):
            client.generate("hello")


def test_no_router_is_a_clear_error() -> None:
    with FakeRouter() as router:
        address = router.address
    with pytest.raises(tidepipe.UnavailableError, match=f"no TidePipe router answers at {address}"):
        tidepipe.Client.connect(address, connect_timeout=0.2)
    with pytest.raises(tidepipe.ConfigError, match="HOST:PORT"):
        tidepipe.Client("http://localhost")
    policy = tidepipe.RetryPolicy(give_up_s=0.2)
    with (
        tidepipe.Client(address, retry=policy) as client,
        pytest.raises(tidepipe.UnavailableError, match=f"gave up .* nobody answers at {address}: "),
    ):
        client.generate("hello")
    # Without such a policy the request's own time is what counts.
    with (
        tidepipe.Client(address) as client,
        pytest.raises(tidepipe.DeadlineExceededError, match=r"within 0\.5 s; the service is away: "),
    ):
        client.generate("hello", timeout=0.5)

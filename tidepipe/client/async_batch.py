"""Many prompts at a time, within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from tidepipe.client.types import BatchResult, Completion
from tidepipe_common.errors import ConfigError, TidePipeError

Item = TypeVar("Item")


async def run_batch(
    items: Iterable[Item] | AsyncIterable[Item],
    answer: Callable[[Item], Awaitable[Completion]],
    concurrency: int,
) -> AsyncGenerator[BatchResult, None]:
    """Results as they finish. Leaving early cancels and awaits whatever is in flight."""
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, got {concurrency}")
    source = _numbered(items)
    running: set[asyncio.Task[BatchResult]] = set()
    more = True
    try:
        while more or running:
            while more and len(running) < concurrency:
                try:
                    index, item = await anext(source)
                except StopAsyncIteration:
                    more = False
                else:
                    running.add(asyncio.create_task(_one(index, item, answer)))
            if running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _numbered(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[tuple[int, Item]]:
    index = 0
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield index, item
            index += 1
    else:
        for item in items:
            yield index, item
            index += 1


async def _one(index: int, item: Item, answer: Callable[[Item], Awaitable[Completion]]) -> BatchResult:
    try:
        return BatchResult(index, await answer(item), None)
    except TidePipeError as error:
        return BatchResult(index, None, error)

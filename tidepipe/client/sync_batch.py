"""Many prompts at a time with threads, within a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from tidepipe.client.collect import Collector
from tidepipe.client.sync_stream import Stream
from tidepipe.client.types import BatchResult, Completion
from tidepipe_common.errors import ConfigError, TidePipeError

Item = TypeVar("Item")


def run_batch(
    items: Iterable[Item], start: Callable[[Item], Stream], concurrency: int
) -> Iterator[BatchResult]:
    """Results as they finish. Leaving early cancels and awaits whatever is in flight."""
    if concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, got {concurrency}")
    source = enumerate(items)
    running: dict[Future[BatchResult], Stream] = {}
    more = True
    with ThreadPoolExecutor(concurrency, thread_name_prefix="tidepipe-batch") as pool:
        try:
            while more or running:
                while more and len(running) < concurrency:
                    numbered = next(source, None)
                    if numbered is None:
                        more = False
                        continue
                    index, item = numbered
                    try:
                        stream = start(item)
                    except TidePipeError as error:
                        yield BatchResult(index, None, error)
                    else:
                        running[pool.submit(_one, index, stream)] = stream
                if running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        del running[future]
                        yield future.result()
        finally:
            for unfinished in running.values():
                unfinished.abort.ask()


def collect(stream: Stream) -> Completion:
    """Read a stream to its end."""
    collector = Collector(stream.request_id)
    with stream:
        for event in stream:
            collector.add(event)
    return collector.completion()


def _one(index: int, stream: Stream) -> BatchResult:
    try:
        return BatchResult(index, collect(stream), None)
    except TidePipeError as error:
        return BatchResult(index, None, error)

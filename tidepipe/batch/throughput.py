"""Offline throughput: a workload of token ids, all submitted at once."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tidepipe.batch.measure import RunClock, cluster_deltas
from tidepipe.client.async_batch import run_batch
from tidepipe.client.async_client import AsyncClient
from tidepipe.client.collect import Collector
from tidepipe.client.requests import WHOLE_ANSWER_GAP_MS
from tidepipe.client.types import Completion
from tidepipe_common.errors import ConfigError
from tidepipe_common.prefix import block_keys
from tidepipe_common.regular_files import read_bytes
from tidepipe_common.settings import defaults
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.token_mix import TokenMix


class WorkloadItem(BaseModel):
    """prompt: token ids. out: output tokens wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: list[int] = Field(min_length=1)
    out: int = Field(ge=1)


def read_workload(path: Path) -> list[WorkloadItem]:
    """A JSON list of {"prompt": [token ids], "out": N}; ConfigError if it is something else."""
    try:
        items = TypeAdapter(list[WorkloadItem]).validate_python(json.loads(read_bytes(path)))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        at = f"entry {where}: " if where else ""
        raise ConfigError(
            f'{path}: {at}{problem["msg"]}; a workload is a list of {{"prompt": [token ids], "out": N}}'
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not items:
        raise ConfigError(f"{path} has no requests")
    return items


def token_mix(items: Sequence[WorkloadItem], *, reuse: bool = True) -> TokenMix:
    """The tokens that all items together take to compute; with `reuse` beginnings in common only once."""
    known: set[bytes] = set()
    prompts = outputs = seen = 0
    for item in items:
        keys = block_keys(b"", item.prompt, defaults.BLOCK_SIZE) if reuse else []
        # A prompt's last token is always computed.
        found = min(sum(key in known for key in keys) * defaults.BLOCK_SIZE, len(item.prompt) - 1)
        known.update(keys)
        end = len(item.prompt) + item.out
        prompts += len(item.prompt) - found
        outputs += item.out
        seen += (end * end - found * found) // 2
    return TokenMix(prompts, outputs, seen // (prompts + outputs))


async def measure_throughput(client: AsyncClient, items: list[WorkloadItem]) -> dict[str, Any]:
    """The report of one run; fields as `tidepipe batch --json`, and the model, stages and data type."""
    clock = RunClock()

    async def answer(item: WorkloadItem) -> Completion:
        sampling = SamplingParams(temperature=0.0, max_tokens=item.out, ignore_eos=True)
        clock.dispatched(time.monotonic())
        async with client.stream(
            item.prompt, sampling, skip_text=True, piece_gap_ms=WHOLE_ANSWER_GAP_MS
        ) as stream:
            collector = Collector(stream.request_id)
            async for event in stream:
                collector.add(event)
                if event.token_ids:
                    clock.token(time.monotonic())
        return collector.completion()

    model = (await client.models())[0]
    before = await client.status()
    results = [result async for result in run_batch(items, answer, len(items))]
    after = await client.status()
    seconds = clock.seconds
    usages = [result.completion.usage for result in results if result.completion is not None]
    errors = [str(result.error) for result in results if result.error is not None]
    short = sum(
        len(result.completion.token_ids) != items[result.index].out
        for result in results
        if result.completion is not None
    )
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    output_tokens = sum(usage.output_tokens for usage in usages)
    deltas = cluster_deltas(before, after, seconds)
    return {
        "requests": len(items),
        "failed": len(errors) + short,
        "first_error": errors[0] if errors else ("an answer is too short" if short else None),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "seconds": round(seconds, 3),
        "output_tokens_per_s": round(output_tokens / seconds, 2) if seconds else 0.0,
        "total_tokens_per_s": round((prompt_tokens + output_tokens) / seconds, 2) if seconds else 0.0,
        "model": model.name,
        "dtype": deltas["stages"][0]["dtype"] if deltas["stages"] else None,
        **deltas,
    }

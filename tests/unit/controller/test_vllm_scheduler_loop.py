"""vLLM's own scheduler with and without ours, on a model that is a function of its tokens: the same answers.

Runs where vLLM is installed. No worker: the loop is that of vLLM's engine with as many steps under way as
stages, and a "model" whose next token depends on the last ones alone, so that any wrong token shows.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

pytest.importorskip("vllm")

from tidepipe_common.errors import ConfigError
from tidepipe_common.model_source import resolve_model

BLOCK = 16
LONGEST = 512


def config(blocks: int, batched: int, seqs: int, caching: bool) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    try:
        model = resolve_model("smollm2-135m", allow_download=False)
    except ConfigError:
        pytest.skip("the model is not here: tidepipe model pull smollm2-135m")
    made = EngineArgs(
        model=str(model),
        dtype="float32",
        pipeline_parallel_size=2,
        max_num_batched_tokens=batched,
        max_num_seqs=seqs,
        max_model_len=LONGEST,
        enable_prefix_caching=caching,
        block_size=BLOCK,
        async_scheduling=False,
    ).create_engine_config()
    made.cache_config.num_gpu_blocks = blocks
    return made


def scheduler_of(kind: Any, made: Any, blocks: int) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=3, head_size=64, dtype=torch.float32)
    groups = [KVCacheGroupSpec(["layer"], spec)]
    kv_cache = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    return kind(
        vllm_config=made,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(made),
        block_size=BLOCK,
        log_stats=True,
    )


def token(tokens: list[int]) -> int:
    return (hash(tuple(tokens[-7:])) * 31 + len(tokens)) % 997


def requests_of(seed: int, made: Any) -> list[Any]:
    from vllm import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    chance = random.Random(seed)
    hash_of = get_hash_fn_by_name("sha256")
    init_none_hash(hash_of)
    hasher = get_request_block_hasher(BLOCK, hash_of) if made.cache_config.enable_prefix_caching else None
    shared = [chance.randrange(900) for _ in range(128)]
    found = []
    for i in range(50):
        own = [chance.randrange(900) for _ in range(1 + chance.randrange(150))]
        prompt = shared[: BLOCK * chance.randrange(9)] + own
        most = min(chance.choice([1, 5, 40, 120, LONGEST]), LONGEST - len(prompt))
        params = SamplingParams(max_tokens=most, ignore_eos=True, temperature=0.0)
        if i % 7 == 3:
            params.stop_token_ids = list(range(0, 997, 9))
        if i % 11 == 5:
            params.prompt_logprobs = 1
        found.append(Request(f"r{i}", prompt, params, None, block_hasher=hasher))
    return found


def answers(kind: Any, made: Any, blocks: int, seed: int) -> tuple[dict[str, list[int]], dict[str, str], Any]:
    """Tokens and reasons of all that was not aborted."""
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import RequestStatus

    scheduler, chance = scheduler_of(kind, made, blocks), random.Random(seed)
    requests = requests_of(seed, made)
    to_come, queue = deque(requests), deque[Any]()
    aborts = chance.sample([request.request_id for request in requests], 6)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    ends = dict.fromkeys(aborts, "abort")
    turn = 0
    while to_come or scheduler.has_requests() or queue:
        turn += 1
        assert turn < 60_000, f"{len(scheduler.requests)} requests never end"
        while to_come and chance.random() < 0.3:
            scheduler.add_request(to_come.popleft())
        if turn % 37 == 5 and aborts:
            scheduler.finish_requests(aborts.pop(), RequestStatus.FINISHED_ABORTED)
        if turn == 400:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        if scheduler.has_requests() and len(queue) < 2:
            output = scheduler.schedule()
            assert len(scheduler.running) <= made.scheduler_config.max_num_seqs
            state = [
                (scheduler.requests[name].is_prefill_chunk, scheduler.requests[name].num_computed_tokens)
                for name in output.num_scheduled_tokens
            ]
            queue.append((output, state))
            if len(queue) < 2:
                continue
        if not queue:
            continue
        output, state = queue.popleft()
        names = list(output.num_scheduled_tokens)
        sampled = []
        for name, (chunk, computed) in zip(names, state, strict=True):
            request = scheduler.requests.get(name)
            known = None if chunk or request is None else list(request.all_token_ids)[:computed]
            sampled.append([] if known is None else [token(known)])
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        for outputs in scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                tokens[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    ends.setdefault(one.request_id, str(one.finish_reason))
    kept = {name: row for name, row in tokens.items() if ends[name] != "abort"}
    return kept, ends, scheduler


@pytest.mark.model
@pytest.mark.parametrize("policy", ["auto", "td-pipe", "padg", "hybrid"])
@pytest.mark.parametrize(
    ("caching", "blocks", "batched", "seqs"),
    [(True, 60, 128, 32), (False, 40, 256, 16), (True, 400, 512, 64)],
)
def test_the_same_answers(
    monkeypatch: pytest.MonkeyPatch, policy: str, caching: bool, blocks: int, batched: int, seqs: int
) -> None:
    """Little memory (preemption), shared beginnings, aborts, stops, the longest sequence, a cleared cache."""
    from vllm.v1.core.sched.scheduler import Scheduler as Plain

    from tidepipe.vllm import Scheduler

    monkeypatch.setenv("TIDEPIPE_VLLM_POLICY", policy)
    made = config(blocks, batched, seqs, caching)
    expected, ends, _ = answers(Plain, made, blocks, seed=1)
    got, ends_too, scheduler = answers(Scheduler, made, blocks, seed=1)
    assert got == expected
    assert ends_too == ends
    assert scheduler._record.counts["steps"] > 100

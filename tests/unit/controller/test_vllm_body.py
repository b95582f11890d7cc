"""vLLM's inner interface that the body of an instance relies on, by name: a version that changes it fails.

Only where vLLM is installed, which is an environment of its own.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from controller.engines.vllm.mapping import NULL_BLOCKS, PlanMapping, sampled_tokens, vllm_sampling
from controller.engines.vllm.versions import require_vllm
from controller.engines.vllm.worker_side import tell_outputs_from_prompts
from tidepipe_common.types.plan import DecodeRows, Phase, PlanRow, SequenceStart, StepPlan
from tidepipe_common.types.sampling import SamplingParams

pytest.importorskip("vllm")


def _fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_the_version_is_one_that_we_know() -> None:
    require_vllm()


def test_what_a_scheduler_hands_to_workers() -> None:
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

    new = "req_id prompt_token_ids mm_features sampling_params pooling_params block_ids num_computed_tokens"
    assert set(new.split()) <= _fields(NewRequestData)
    cached = "req_ids resumed_req_ids new_token_ids all_token_ids new_block_ids num_computed_tokens"
    assert {*cached.split(), "num_output_tokens"} == _fields(CachedRequestData)
    required = {
        field.name
        for field in dataclasses.fields(SchedulerOutput)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert required == {
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "scheduled_spec_decode_tokens",
        "scheduled_encoder_inputs",
        "finished_req_ids",
        "free_encoder_mm_hashes",
    }


def test_what_comes_back() -> None:
    from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

    assert {"req_id_to_index", "sampled_token_ids", "logprobs"} <= _fields(ModelRunnerOutput)
    assert LogprobsLists._fields[:2] == ("logprob_token_ids", "logprobs")


def test_executors_and_the_engine_that_makes_caches() -> None:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    assert list(inspect.signature(Executor.execute_model).parameters) == [
        "self",
        "scheduler_output",
        "non_block",
    ]
    assert list(inspect.signature(Executor.sample_tokens).parameters) == [
        "self",
        "grammar_output",
        "non_block",
    ]
    for name in ("get_class", "register_failure_callback", "collective_rpc", "shutdown"):
        assert hasattr(Executor, name), name
    assert list(inspect.signature(EngineCore._initialize_kv_caches).parameters) == ["self", "vllm_config"]


def test_engine_arguments_that_we_give() -> None:
    from vllm.engine.arg_utils import EngineArgs

    from controller.engines.vllm.engine_options import EngineOptions

    given = EngineOptions("m", "p", 1, block_size=16, kv_blocks=4).arguments()
    assert given.keys() <= _fields(EngineArgs)


def test_plans_become_scheduler_outputs() -> None:
    mapping = PlanMapping(64, tokens_travel=True)
    sampling = SamplingParams(temperature=0.0, logprobs=1)
    start = SequenceStart(7, sampling, prompt_tokens=3, history=(1, 2, 3), eos_token_ids=(0,))
    first = mapping.output(StepPlan(1, Phase.PREFILL, (PlanRow(7, 0, 3, (1, 2, 3), (4,), True),), (start,)))
    (new,) = first.scheduled_new_reqs
    assert (new.req_id, new.prompt_token_ids, new.num_computed_tokens) == ("7", [1, 2, 3], 0)
    assert new.block_ids == ([4 + NULL_BLOCKS],)
    assert (first.num_scheduled_tokens, first.total_num_scheduled_tokens) == ({"7": 3}, 3)

    decode = StepPlan(2, Phase.DECODE, (), (), (), DecodeRows((7,), (3,), (9,), ((0, (6,)),)))
    second = mapping.output(decode)
    cached = second.scheduled_cached_reqs
    assert (cached.req_ids, cached.new_token_ids, cached.new_block_ids) == (
        ["7"],
        [[9]],
        [([6 + NULL_BLOCKS],)],
    )
    assert (cached.num_computed_tokens, cached.num_output_tokens) == ([3], [1])
    assert mapping.wanted_logprobs(decode) == {7: 1}

    last = mapping.output(StepPlan(3, Phase.PREFILL, (), (), (7,)))
    assert last.finished_req_ids == {"7"}


def test_chunks_of_a_recomputation_leave_its_output_alone() -> None:
    mapping = PlanMapping(64, tokens_travel=False)
    start = SequenceStart(1, SamplingParams(), prompt_tokens=1, history=(1, 2, 3, 4))
    mapping.output(StepPlan(1, Phase.PREFILL, (PlanRow(1, 0, 2, (1, 2), (0,), False),), (start,)))
    rest = mapping.output(StepPlan(2, Phase.PREFILL, (PlanRow(1, 2, 1, (3,), (), False),)))
    assert rest.scheduled_cached_reqs.num_output_tokens == [3]


def test_what_was_sampled_is_put_in_our_order() -> None:
    import numpy as np
    from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

    plan = StepPlan(
        1, Phase.DECODE, (PlanRow(3, 0, 2, (1, 2), (), False),), (), (), DecodeRows((1, 2), (4, 4), (8, 9))
    )
    tokens, values = np.array([[0, 0], [21, 5], [11, 6]]), np.array([[0, 0], [-1, -2], [-3, -4]])
    lists = LogprobsLists(tokens, values, np.zeros(3))
    ids = {"3": 0, "2": 1, "1": 2}
    output = ModelRunnerOutput(list(ids), ids, [[], [21], [11]], lists)
    sampled = sampled_tokens(plan, {2: 1}, output)
    assert sampled.token_ids == (11, 21)
    chosen = sampled.logprobs[1]
    assert (chosen.chosen.token_id, chosen.chosen.logprob, [one.token_id for one in chosen.top]) == (
        21,
        -1,
        [5],
    )


def test_a_sequence_that_begins_anew_keeps_its_output_apart_from_its_prompt() -> None:
    from types import SimpleNamespace

    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    start = SequenceStart(1, SamplingParams(seed=5, min_tokens=4), prompt_tokens=2, history=(1, 2, 3))
    params = vllm_sampling(start, 64)
    assert params.seed != 5
    state = CachedRequestState("1", [1, 2, 3], [], params, None, ([],), 0, [])
    seen: list[Any] = []
    batch = SimpleNamespace(add_request=seen.append)
    tell_outputs_from_prompts(SimpleNamespace(model_runner=SimpleNamespace(input_batch=batch)))
    batch.add_request(state)
    assert (state.prompt_token_ids, state.output_token_ids, state.num_prompt_tokens) == ([1, 2], [3], 2)
    assert state.num_tokens == 3 and seen == [state]

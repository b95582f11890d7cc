"""vLLM's inner interface that the body of an instance relies on, by name: a version that changes it fails.

Only where vLLM is installed, which is an environment of its own.
"""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.engines.vllm.mapping import NULL_BLOCKS, PlanMapping, sampled_tokens, vllm_sampling
from controller.engines.vllm.structures import StructureMasks
from controller.engines.vllm.versions import require_vllm
from controller.engines.vllm.worker_side import draw_by_place, tell_outputs_from_prompts
from tests.fakes.byte_tokenizer import byte_tokenizer
from tidepipe_common.limits import MAX_LOGPROBS
from tidepipe_common.structures.state import Grammars
from tidepipe_common.types.plan import DecodeRows, Phase, PlanRow, RowError, SequenceStart, StepPlan
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import ThoughtMarks

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


def test_what_samplers_are_told_of_structures() -> None:
    from vllm.v1.core.sched.output import GrammarOutput

    assert list(inspect.signature(GrammarOutput).parameters)[:2] == [
        "structured_output_request_ids",
        "grammar_bitmask",
    ]


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
    mapping = PlanMapping(64, 300, tokens_travel=True)
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
    mapping = PlanMapping(64, 300, tokens_travel=False)
    start = SequenceStart(1, SamplingParams(), prompt_tokens=1, history=(1, 2, 3, 4))
    mapping.output(StepPlan(1, Phase.PREFILL, (PlanRow(1, 0, 2, (1, 2), (0,), False),), (start,)))
    rest = mapping.output(StepPlan(2, Phase.PREFILL, (PlanRow(1, 2, 1, (3,), (), False),)))
    assert rest.scheduled_cached_reqs.num_output_tokens == [3]


def test_structures_are_masks_of_the_rows_that_sample() -> None:
    """Also where a sequence begins behind a part of its output, or with the last chunk of its prompt."""
    tokenizer = byte_tokenizer()
    end, vocab_size = tokenizer.token_to_id("<end>"), tokenizer.token_to_id("<end>") + 8
    ids = {letter: tokenizer.token_to_id(letter) for letter in "abc}"}
    masks = StructureMasks(Grammars(tokenizer.to_str, vocab_size), vocab_size)
    held = SamplingParams(structure=Structure("regex", "a(b|c)"))
    cut = SamplingParams(structure=Structure("regex", "b}a"), stop_token_ids=(ids["}"],))

    def start(key: int, sampling: SamplingParams, *output: str) -> SequenceStart:
        return SequenceStart(key, sampling, 2, (7, 8, *(ids[one] for one in output)), (end,))

    def allowed(plan: StepPlan) -> tuple[dict[str, set[int]], tuple[RowError, ...]]:
        told, errors = masks.masks(plan)
        if told is None:
            return {}, errors
        assert told.grammar_bitmask.shape == (len(told.structured_output_request_ids), -(-vocab_size // 32))
        bits = np.unpackbits(told.grammar_bitmask.view(np.uint8), axis=1, bitorder="little")
        found = ({*row.nonzero()[0]} for row in bits)
        return dict(zip(told.structured_output_request_ids, found, strict=True)), errors

    starts = (start(1, held), start(2, held, "a"), start(3, cut, "b"), start(4, SamplingParams()))
    rows = (PlanRow(1, 0, 1, (7,), (0,), False), PlanRow(2, 0, 3, (7, 8, ids["a"]), (1,), True))
    other = (PlanRow(3, 0, 3, (7, 8, ids["b"]), (2,), True), PlanRow(4, 0, 2, (7, 8), (3,), True))
    found, (error,) = allowed(StepPlan(1, Phase.PREFILL, (*rows, *other), starts))
    assert found == {"2": {ids["b"], ids["c"]}}
    assert (error.key, error.fault) == (3, "stop_token_ids")

    found, errors = allowed(StepPlan(2, Phase.PREFILL, (PlanRow(1, 1, 1, (8,), (), True),), (), (3,)))
    assert (found, errors) == ({"1": {ids["a"]}}, ())
    decode = DecodeRows((1, 2, 4), (2, 3, 2), (ids["a"], ids["b"], 5))
    assert allowed(StepPlan(3, Phase.DECODE, (), (), (), decode))[0] == {
        "1": {ids["b"], ids["c"]},
        "2": {end},
    }
    assert allowed(StepPlan(4, Phase.DECODE, (), (), (1, 2), DecodeRows((4,), (3,), (9,)))) == ({}, ())


def test_a_thought_that_is_used_up_ends_and_none_begins_again() -> None:
    masks = StructureMasks(Grammars(lambda: "", 64), 64)
    marks = ThoughtMarks(begins=(50,), ends=(51,), forced=(51, 52), open=True)
    sampling = SamplingParams(thought=marks, max_reasoning_tokens=1)

    def allowed(step: int, token: int, place: int, *starts: SequenceStart) -> list[int] | None:
        row = PlanRow(1, place, 1, (token,), (), True)
        told, errors = masks.masks(StepPlan(step, Phase.DECODE, (row,), starts))
        assert not errors
        bits = told and np.unpackbits(told.grammar_bitmask.view(np.uint8), bitorder="little")
        return None if bits is None else bits.nonzero()[0].tolist()

    assert allowed(1, 7, 0, SequenceStart(1, sampling, 1, (7,))) is None
    assert (allowed(2, 9, 1), allowed(3, 51, 2)) == ([51], [52])
    assert allowed(4, 52, 3) == [token for token in range(64) if token != 50]


def test_what_was_sampled_is_put_in_our_order() -> None:
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
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    start = SequenceStart(1, SamplingParams(seed=5, min_tokens=4), prompt_tokens=2, history=(1, 2, 3))
    params = vllm_sampling(start, 64, 300)
    state = CachedRequestState("1", [1, 2, 3], [], params, None, ([],), 0, [])
    seen: list[Any] = []
    batch = SimpleNamespace(add_request=seen.append)
    tell_outputs_from_prompts(SimpleNamespace(model_runner=SimpleNamespace(input_batch=batch)))
    batch.add_request(state)
    assert (state.prompt_token_ids, state.output_token_ids, state.num_prompt_tokens) == ([1, 2], [3], 2)
    assert state.num_tokens == 3 and seen == [state]


def test_ids_that_the_model_does_not_have_never_reach_a_worker() -> None:
    sampling = SamplingParams(logit_bias={5: 1.0, 300: 2.0}, min_tokens=2, stop_token_ids=(7, 300))
    params = vllm_sampling(SequenceStart(1, sampling, 1, (1,)), 64, 300)
    assert (params.logit_bias, params.stop_token_ids) == ({5: 1.0}, [7])


def test_draws_depend_on_the_seed_and_the_place_alone() -> None:
    """And a draw at the end of a prompt's chunk can be taken back, as vLLM does."""
    import torch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert list(inspect.signature(GPUModelRunner._sample).parameters)[1:] == [
        "logits",
        "spec_decode_metadata",
    ]

    def drawn(output: list[int]) -> float:
        generator = torch.Generator()
        generator.manual_seed(9)
        params = SimpleNamespace(seed=9)
        state = SimpleNamespace(sampling_params=params, output_token_ids=output, generator=generator)
        batch = SimpleNamespace(req_ids=["1"], generators={0: generator})
        runner = SimpleNamespace(input_batch=batch, requests={"1": state})
        runner._sample = lambda: torch.empty(1).exponential_(generator=batch.generators[0])
        draw_by_place(SimpleNamespace(model_runner=runner))
        first = float(runner._sample())
        batch.generators[0].set_offset(batch.generators[0].get_offset() - 4)
        assert float(runner._sample()) == first
        return first

    assert drawn([]) == drawn([]) and len({drawn([]), drawn([1]), drawn([1, 2])}) == 3


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=100, top_k=1 << 40, top_p=1e-12, min_p=1.0, seed=(1 << 64) - 1),
        SamplingParams(
            temperature=1e-12, repetition_penalty=1e-12, presence_penalty=-2, frequency_penalty=-2
        ),
        SamplingParams(repetition_penalty=100, presence_penalty=2, frequency_penalty=2, min_tokens=1 << 30),
        SamplingParams(logprobs=MAX_LOGPROBS, logit_bias={-1: 1.0, 299: -100.0}, min_tokens=1, seed=0),
        SamplingParams(temperature=0, stop_token_ids=(-1, 299), min_tokens=5, logprobs=0, seed=1 << 63),
    ],
)
def test_whatever_the_api_takes_vllm_takes(sampling: SamplingParams) -> None:
    """Else one request's plan would end the epoch for all."""
    sampling.check()
    made = vllm_sampling(SequenceStart(1, sampling, 1, (1,)), 64, 300)
    assert made.temperature == (max(sampling.temperature, 0.01) if sampling.temperature else 0.0)

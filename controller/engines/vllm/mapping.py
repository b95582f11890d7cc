"""Our plans as vLLM's SchedulerOutput, and what its runner sampled as our SampledTokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controller.engines.vllm.worker_side import PROMPT_TOKENS
from tidepipe_common.types.plan import PlanRow, RowError, SampledTokens, SequenceStart, StepPlan
from tidepipe_common.types.sampling import PositionLogprobs, TokenLogprob

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams as VllmSampling
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

NULL_BLOCKS = 1
"""Blocks at the beginning of vLLM's pool that no sequence may have: block 0 stands for none."""
MOST_HEAT = 2.0
"""The highest temperature that vLLM's API takes; its sampler has no such limit."""


def vllm_sampling(start: SequenceStart, longest: int, vocab_size: int) -> VllmSampling:
    """What vLLM's sampler must know; when an output ends is decided by us.

    longest: tokens of a sequence at most. vocab_size: ids that the model does not have can never be sampled,
    and a worker would fail at them.
    """
    from vllm.sampling_params import SamplingParams as VllmSampling

    ours = start.sampling
    produced = len(start.history) - start.prompt_tokens
    # What ends an output that is held to a structure, and when, is known by its mask.
    min_tokens = 0 if ours.structure else min(ours.min_tokens, longest)
    ends = dict.fromkeys((*start.eos_token_ids, *ours.stop_token_ids)) if min_tokens > produced else ()
    bias = {token: float(value) for token, value in ours.logit_bias.items() if 0 <= token < vocab_size}
    made = VllmSampling(
        temperature=min(ours.temperature, MOST_HEAT),
        top_k=ours.top_k,
        top_p=ours.top_p,
        min_p=ours.min_p,
        repetition_penalty=ours.repetition_penalty,
        presence_penalty=ours.presence_penalty,
        frequency_penalty=ours.frequency_penalty,
        seed=ours.seed,
        logit_bias=bias or None,
        min_tokens=min_tokens,
        max_tokens=longest,
        # Masked before min_tokens, and else without meaning for the runner.
        stop_token_ids=[token for token in ends if 0 <= token < vocab_size],
        logprobs=ours.logprobs,
        ignore_eos=True,
        detokenize=False,
        extra_args={PROMPT_TOKENS: start.prompt_tokens} if produced else None,
    )
    made.temperature = max(made.temperature, ours.temperature)
    return made


@dataclass(slots=True)
class _Known:
    """A sequence known to the workers. prompt: its prompt's tokens. produced: output that it began with."""

    prompt: int
    produced: int
    logprobs: int | None


class PlanMapping:
    """Of one epoch: which sequences the workers know. Plans are to be mapped in their order."""

    def __init__(self, longest: int, vocab_size: int, *, tokens_travel: bool) -> None:
        """longest: tokens of a sequence at most.

        tokens_travel: there is more than one stage, and the first ones learn from us what was sampled.
        """
        self._longest = longest
        self._vocab_size = vocab_size
        self._tokens_travel = tokens_travel
        self._known: dict[int, _Known] = {}

    def output(self, plan: StepPlan) -> SchedulerOutput:
        """What vLLM's workers are to do in this step."""
        from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

        for key in plan.releases:
            self._known.pop(key, None)
        starts = {start.key: start for start in plan.starts}
        fresh: list[NewRequestData] = []
        cached = CachedRequestData.make_empty()
        tokens: dict[str, int] = {}
        for row in plan.rows:
            tokens[str(row.key)] = row.count
            start = starts.get(row.key)
            if start is not None:
                self._known[row.key] = _Known(
                    start.prompt_tokens, len(start.history) - start.prompt_tokens, start.sampling.logprobs
                )
                fresh.append(
                    NewRequestData(
                        req_id=str(row.key),
                        prompt_token_ids=list(start.history),
                        mm_features=[],
                        sampling_params=vllm_sampling(start, self._longest, self._vocab_size),
                        pooling_params=None,
                        block_ids=(_blocks(row),),
                        num_computed_tokens=row.first_position,
                        lora_request=None,
                    )
                )
            else:
                self._go_on(cached, row)
        return SchedulerOutput(
            scheduled_new_reqs=fresh,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=plan.tokens,
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            finished_req_ids={str(key) for key in plan.releases},
            free_encoder_mm_hashes=[],
        )

    def _go_on(self, cached: Any, row: PlanRow) -> None:
        cached.req_ids.append(str(row.key))
        if self._tokens_travel:
            cached.new_token_ids.append(list(row.token_ids))
        cached.new_block_ids.append((_blocks(row),) if row.new_blocks else None)
        cached.num_computed_tokens.append(row.first_position)
        known = self._known[row.key]
        # The runner drops what it has beyond; what a sequence began with it has before it is computed again.
        cached.num_output_tokens.append(max(known.produced, row.first_position + row.count - known.prompt))

    def wanted_logprobs(self, plan: StepPlan) -> dict[int, int]:
        """How many a sequence wants, of those that sample in this step and want some."""
        found: dict[int, int] = {}
        for row in plan.rows:
            wanted = self._known[row.key].logprobs
            if row.sample and wanted is not None:
                found[row.key] = wanted
        return found


def _blocks(row: PlanRow) -> list[int]:
    return [block + NULL_BLOCKS for block in row.new_blocks]


def sampled_tokens(
    plan: StepPlan, wanted: dict[int, int], output: ModelRunnerOutput, errors: tuple[RowError, ...] = ()
) -> SampledTokens:
    """What the runner sampled, in the order of our rows.

    wanted: see `wanted_logprobs`. errors: see SampledTokens.

    ValueError if it sampled something else than what was planned.
    """
    ids: list[int] = []
    logprobs: list[PositionLogprobs] = []
    for row in _sampling_rows(plan):
        index = output.req_id_to_index.get(str(row.key), -1)
        sampled = output.sampled_token_ids[index] if index >= 0 else []
        if len(sampled) != 1:
            raise ValueError(f"vLLM sampled {len(sampled)} tokens for sequence {row.key}, not one")
        ids.append(int(sampled[0]))
        if wanted:
            count = wanted.get(row.key)
            if count is None or output.logprobs is None:
                logprobs.append(PositionLogprobs(TokenLogprob(ids[-1], 0.0)))
            else:
                logprobs.append(_position(output.logprobs, index, count))
    return SampledTokens(tuple(ids), tuple(logprobs), errors)


def _sampling_rows(plan: StepPlan) -> Iterator[PlanRow]:
    return (row for row in plan.rows if row.sample)


def _position(lists: LogprobsLists, index: int, count: int) -> PositionLogprobs:
    """The first column is of the token that was chosen, the others of the most likely ones."""
    tokens, values = lists.logprob_token_ids[index].tolist(), lists.logprobs[index].tolist()
    pairs = [TokenLogprob(int(token), float(value)) for token, value in zip(tokens, values, strict=True)]
    return PositionLogprobs(pairs[0], tuple(pairs[1 : 1 + count]))

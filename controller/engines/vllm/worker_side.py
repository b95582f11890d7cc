"""What runs within vLLM's workers: sent there once, when they are up. Imports nothing of ours."""

from __future__ import annotations

from typing import Any

PROMPT_TOKENS = "tidepipe_prompt_tokens"
"""Key of a request's `extra_args`: how many of the tokens that it begins with are prompt."""


def tell_outputs_from_prompts(worker: Any) -> None:
    """Let a request begin with output tokens.

    vLLM's workers take all that a new request begins with for its prompt. A sequence that is recomputed
    after a preemption or a lost worker has output already, and penalties and min_tokens count that.
    """
    batch = worker.model_runner.input_batch
    add = batch.add_request

    def add_request(state: Any) -> Any:
        params = state.sampling_params
        prompt = ((params.extra_args if params is not None else None) or {}).get(PROMPT_TOKENS)
        if prompt is not None and not state.output_token_ids and prompt < state.num_prompt_tokens:
            state.output_token_ids.extend(state.prompt_token_ids[prompt:])
            state.prompt_token_ids = state.prompt_token_ids[:prompt]
            state.num_prompt_tokens = prompt
        return add(state)

    batch.add_request = add_request

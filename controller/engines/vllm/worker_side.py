"""What runs within vLLM's workers: sent there once, when they are up."""

from __future__ import annotations

import hashlib
from typing import Any

from controller.engines.waiting import sleep_while_waiting

PROMPT_TOKENS = "tidepipe_prompt_tokens"
"""Key of a request's `extra_args`: how many of the tokens that it begins with are prompt."""


def begin(worker: Any) -> None:
    """Once in each worker."""
    tell_outputs_from_prompts(worker)
    draw_by_place(worker)
    if worker.device_config.device_type == "cpu":
        sleep_while_waiting()


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


def draw_by_place(worker: Any) -> None:
    """Let what is drawn for a request with a seed depend on the seed and the place in the output alone.

    vLLM draws from one stream for each request, which begins anew where the request does: not the same as
    without an interruption. And it draws at the end of each chunk of a prompt, and then takes the draw back,
    which generators of CPUs cannot do: there vLLM fails.
    """
    import torch

    runner = worker.model_runner
    sample = runner._sample

    class PlacedGenerator(torch.Generator):
        """A generator that is set before each draw, so that none needs to be taken back."""

        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> torch.Generator:
            return self

    def placed(*arguments: Any, **named: Any) -> Any:
        batch = runner.input_batch
        for row, generator in batch.generators.items():
            state = runner.requests[batch.req_ids[row]]
            if not isinstance(generator, PlacedGenerator):
                generator = state.generator = batch.generators[row] = PlacedGenerator(generator.device)
            generator.manual_seed(seed_of_place(state.sampling_params.seed, len(state.output_token_ids)))
        return sample(*arguments, **named)

    runner._sample = placed


def seed_of_place(seed: int, place: int) -> int:
    """Of one draw. All bits depend on both: a CPU's generator uses the lowest 32 only."""
    digest = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

"""How much a chat's model thinks, and what its template gets besides, in the fields of several APIs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TEMPLATE_BYTES, MAX_TEMPLATE_DEPTH
from tidepipe_common.openai.numbers import Count
from tidepipe_common.openai.validation import StrictModel, checked_text
from tidepipe_common.text.json_text import depth, kind, write_json

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


def _arguments(value: Any) -> str:
    """As JSON."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, got {kind(value)}")
    if depth(value, MAX_TEMPLATE_DEPTH) > MAX_TEMPLATE_DEPTH:
        raise ValueError(f"may be nested {MAX_TEMPLATE_DEPTH} levels deep")
    return checked_text(write_json(value, MAX_TEMPLATE_BYTES)) if value else ""


TemplateArguments = Annotated[str, BeforeValidator(_arguments), WithJsonSchema({"type": "object"})]


class Reasoning(StrictModel):
    """`reasoning`, as OpenRouter has it."""

    effort: Effort | None = None
    max_tokens: Count | None = None


class ReasoningFields(StrictModel):
    """Fields of a chat. Several say the same in other words; they must agree."""

    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    max_reasoning_tokens: Count | None = None
    thinking_token_budget: Count | None = None
    chat_template_kwargs: TemplateArguments | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def effort(self) -> str:
        """Empty: as the model does by itself."""
        said = Reasoning() if self.reasoning is None else self.reasoning
        return _one({"reasoning_effort": self.reasoning_effort, "reasoning": said.effort}) or ""

    def thought_tokens(self) -> int | None:
        """Of a thought at most; None: no limit."""
        said = Reasoning() if self.reasoning is None else self.reasoning
        most: int | None = _one(
            {
                "max_reasoning_tokens": self.max_reasoning_tokens,
                "reasoning": said.max_tokens,
                "thinking_token_budget": self.thinking_token_budget,
            }
        )
        return most


def _one(wishes: dict[str, Any]) -> Any:
    given = {name: wish for name, wish in wishes.items() if wish is not None}
    if len(set(given.values())) > 1:
        first, second, *_ = given
        raise InvalidRequestError(f"{first} and {second} contradict each other; send one of them", second)
    return next(iter(given.values()), None)

"""Bodies of /tokenize and /detokenize, as vLLM has them: what a text or a chat is to the model, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema
from typing_extensions import TypedDict

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_PROMPT_TOKENS, MAX_TURNS
from tidepipe_common.openai.answers import closed
from tidepipe_common.openai.bodies import Message, ModelName
from tidepipe_common.openai.fields import token_ids
from tidepipe_common.openai.numbers import MAX_INT
from tidepipe_common.openai.reasoning import TemplateArguments
from tidepipe_common.openai.tools import Tools
from tidepipe_common.openai.validation import Refusal, StrictModel, checked_text, validate
from tidepipe_common.types.request import ChatTurn
from tidepipe_common.types.thought import TemplateOptions

REFUSED_IN_TOKENIZE = {
    "chat_template": Refusal("only the model's own chat template is supported"),
    "mm_processor_kwargs": Refusal("only text is supported", ({},)),
}

_OF_TEMPLATES = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")

Text = Annotated[str, BeforeValidator(checked_text), WithJsonSchema({"type": "string"})]
Ids = Annotated[
    tuple[int, ...],
    BeforeValidator(token_ids),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_INT},
            "maxItems": MAX_PROMPT_TOKENS,
        }
    ),
]


class TokenizeBody(StrictModel):
    """Body of /tokenize: a prompt, or the messages of a chat. What is left out is null."""

    model: ModelName | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_TURNS)] | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(StrictModel):
    """Body of /detokenize."""

    model: ModelName | None = None
    tokens: Ids


@closed
class Tokenized(TypedDict):
    """Tokens of a text, as the model gets them. token_strs: how each is spelled, if asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


@closed
class Detokenized(TypedDict):
    """Text of tokens."""

    prompt: str


@dataclass(frozen=True, slots=True)
class TextToTokenize:
    """What is asked: exactly one of text and turns is set.

    special: with the tokens that the tokenizer puts around a text. template: what a chat's gets besides.
    """

    model: str | None
    text: str | None
    turns: tuple[ChatTurn, ...]
    tools: tuple[str, ...]
    special: bool
    template: TemplateOptions
    spelled: bool

    @property
    def characters(self) -> int:
        """How much there is to read."""
        if self.text is not None:
            return len(self.text)
        return sum(map(len, self.tools)) + sum(
            len(turn.content) + len(turn.tool_calls) for turn in self.turns
        )


def parse_tokenize(body: object) -> TextToTokenize:
    """From the decoded JSON of a body. Raises InvalidRequestError."""
    asked = validate(TokenizeBody, body, REFUSED_IN_TOKENIZE, ())
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequestError("send either prompt or messages", "prompt")
    if asked.prompt is not None:
        for name in ("tools", *_OF_TEMPLATES):
            if getattr(asked, name):
                raise InvalidRequestError(f"{name} is only allowed with messages", name)
    elif asked.add_special_tokens:
        raise InvalidRequestError(
            "add_special_tokens is only allowed with prompt: of a chat the template writes them",
            "add_special_tokens",
        )
    if asked.continue_final_message and asked.add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt contradict each other; send one of them",
            "continue_final_message",
        )
    template = TemplateOptions(
        arguments=asked.chat_template_kwargs or "",
        continued=bool(asked.continue_final_message),
        opened=not asked.continue_final_message and asked.add_generation_prompt is not False,
    )
    template.check()
    return TextToTokenize(
        model=asked.model or None,
        text=asked.prompt,
        turns=tuple(message.turn(number) for number, message in enumerate(asked.messages or ())),
        tools=asked.tools or (),
        special=asked.add_special_tokens is not False,
        template=template,
        spelled=bool(asked.return_token_strs),
    )


def parse_detokenize(body: object) -> DetokenizeBody:
    """From the decoded JSON of a body. Raises InvalidRequestError."""
    return validate(DetokenizeBody, body, {}, ())

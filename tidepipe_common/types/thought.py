"""What a model thinks before it answers: how much of it is wanted, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TEMPLATE_BYTES, check_bytes, text_bytes

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
"""How much a model is to think, in OpenAI's words."""


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """What a chat's template gets besides messages and tools.

    effort: one of EFFORTS; empty: as the model does by itself. arguments: the template's own, a JSON object;
    empty: none. continued: the answer goes on with the last message, an assistant's. opened: the template
    begins the assistant's turn.
    """

    effort: str = ""
    arguments: str = ""
    continued: bool = False
    opened: bool = True

    def check(self) -> None:
        """InvalidRequestError for what no template can take."""
        if self.effort and self.effort not in EFFORTS:
            raise InvalidRequestError(
                f"reasoning_effort must be one of {', '.join(EFFORTS)}, got {self.effort[:100]!r}",
                "reasoning_effort",
            )
        size = text_bytes(self.arguments)
        check_bytes("chat_template_kwargs", size, MAX_TEMPLATE_BYTES)


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """Tokens around a thought; routers know them of the model's dialect.

    begins: the tokens with which one begins. ends: each of these ends it. forced: what is put where it must
    end, the first one of `ends`. open: the prompt has begun one.
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    forced: tuple[int, ...]
    open: bool = False

"""The protocol of a model's text processing, as requests need it; `router.text` implements it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from tidepipe_common.dialects import Dialect
from tidepipe_common.types.request import PLAIN_TEMPLATE, ChatTurn, GenerationRequest
from tidepipe_common.types.sampling import Pooling, SamplingParams
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import TemplateOptions


class TooManyTokensError(Exception):
    """A text has more tokens than were asked for, `at_least` so many; the rest was not looked at."""

    def __init__(self, at_least: int) -> None:
        super().__init__(f"more than {at_least} tokens")
        self.at_least = at_least


class Detokenizer(Protocol):
    """Turns the tokens of one output into text, whole characters only."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Take the next tokens; return the characters that are certain now."""
        ...

    def flush(self) -> str:
        """Return what is left at the end."""
        ...


class TextPort(Protocol):
    """Tokenizer and chat template of the served model."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the tokenizer knows."""
        ...

    @property
    def pooling(self) -> Pooling | None:
        """How its states become the vector of a text; None: there are no vectors of it."""
        ...

    def close(self) -> None:
        """End what it runs beside this process; nobody will ask it any more."""
        ...

    def encode(self, text: str, most: int | None = None, *, special: bool = True) -> list[int]:
        """Token ids of plain text. TooManyTokensError if there are plainly more than `most`.

        special: with the special tokens that the tokenizer puts around a text.
        """
        ...

    def encode_chat(
        self,
        messages: Sequence[ChatTurn],
        tools: Sequence[str] = (),
        most: int | None = None,
        options: TemplateOptions = PLAIN_TEMPLATE,
    ) -> list[int]:
        """Token ids of a conversation, likewise. tools: JSON objects."""
        ...

    def held(
        self, request: GenerationRequest, prompt: Sequence[int], sampling: SamplingParams
    ) -> SamplingParams:
        """The request's sampling parameters, with the form that answers behind these tokens are held to.

        InvalidRequestError if they cannot be: what is wrong with its tools or its choice among them.
        """
        ...

    async def check_structure(
        self, structure: Structure, vocab_size: int, eos_token_ids: tuple[int, ...], owner: str = ""
    ) -> None:
        """InvalidRequestError if no output of the model, of which these are facts, can be held to it.

        owner: whose turn it is used for.
        """
        ...

    @property
    def dialect(self) -> Dialect:
        """How the model writes thoughts and calls of tools."""
        ...

    def new_detokenizer(
        self, prompt_ids: Sequence[int], skip_special_tokens: bool, kept: Collection[str] = frozenset()
    ) -> Detokenizer:
        """Decoder of one output that follows `prompt_ids`. kept: special tokens that it shows."""
        ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, all at once."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes; half a character is possible."""
        ...

    def is_special(self, token_id: int) -> bool:
        """True for tokens that steer the model and are no text."""
        ...

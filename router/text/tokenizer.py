"""From text and conversations to token ids, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from router.requests.text_port import TooManyTokensError
from router.text.chat_template import ChatTemplate
from router.text.detokenizer import Detokenizer, make_detokenizer
from router.text.forms import answer_form
from router.text.pooling import pooling_of
from router.text.structure_checks import StructureChecks
from router.text.template_trial import try_out
from router.text.vocabulary import Backend, Vocabulary
from tidepipe_common.dialects import AUTO, dialect_named
from tidepipe_common.dialects.calling import Thinking, thinking_behind
from tidepipe_common.dialects.thinking import thought_marks
from tidepipe_common.errors import InvalidRequestError, ModelError
from tidepipe_common.structures.tokenizer_file import read_tokenizer
from tidepipe_common.text.text import quoted
from tidepipe_common.tokenizer_source import load_tokenizer
from tidepipe_common.types.request import PLAIN_TEMPLATE, ChatTurn, GenerationRequest
from tidepipe_common.types.sampling import Pooling, SamplingParams
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.text_choices import TextChoices
from tidepipe_common.types.thought import TemplateOptions

LIKELY_CHARACTERS = 6
"""Of a token, and more than the mean of ordinary text: a longer prompt is counted in pieces first."""
AS_IT_IS = TextChoices(AUTO, AUTO, AUTO)
"""As the model's own files say."""
PIECE_CHARACTERS = 65_536
PROMPT_END_TOKENS = 32
"""Of a prompt, in which it is seen whether a thought has been begun."""
CUT_TOKENS, CUT_SHARE = 64, 0.02
"""What cutting a text into pieces may add to its tokens: about each cut, and of all."""
_PANIC = "pyo3_runtime"
"""Where the exception is from with which Rust code says that it cannot go on; it is no Exception."""


class TextProcessor:
    """A model's tokenizer and chat template. All methods may be called from several threads at once.

    It talks to the tokenizer's Rust core directly: the Python wrapper around it changes shared settings on
    each call, and is not thread-safe.
    """

    def __init__(
        self,
        tokenizer: Any,
        read: Callable[[], str] | None = None,
        tool_parser: str = AUTO,
        pooling: Pooling | None = Pooling.LAST,
        reasoning_parser: str = AUTO,
    ) -> None:
        """Take a fast tokenizer of transformers; see `load`.

        read: its tokenizer.json as stage workers read it; None: what the tokenizer says of itself.
        tool_parser: name of the dialect that the model writes; reasoning_parser: of its thoughts.
        ModelError if they do not go together.
        """
        self._tokenizer = tokenizer
        self._backend: Backend = tokenizer.backend_tokenizer
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self._vocabulary = Vocabulary(self._backend)
        self._read: Callable[[], str] = read or tokenizer.backend_tokenizer.to_str
        self._checks: StructureChecks | None = None
        self._template = ChatTemplate(tokenizer)
        self._added = frozenset(self._backend.get_added_tokens_decoder())
        special = self._vocabulary.special_tokens.values()
        try:
            self.dialect = dialect_named(
                tool_parser, self._template.text, special, reasoning=reasoning_parser
            )
        except InvalidRequestError as error:
            raise ModelError(str(error)) from None
        self.pooling = pooling

    @classmethod
    def load(cls, path: Path, choices: TextChoices = AS_IT_IS) -> TextProcessor:
        """Load from a model's folder or .gguf file; nothing from the network, and no code of the model's.

        Raises ModelError if there is no tokenizer or it is of an unsupported kind, or if its chat template
        cannot be used.
        """
        tokenizer = load_tokenizer(path)
        template = tokenizer.chat_template or {}
        templates = [template] if isinstance(template, str) else list(template.values())
        if templates:
            try_out(templates, f"the chat template of {path}")
        choices = choices.over(AS_IT_IS)
        pooling = pooling_of(path, choices.pooling)
        read = partial(read_tokenizer, path)
        return cls(tokenizer, read, choices.tool_parser, pooling, choices.reasoning_parser)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's own vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size()

    def close(self) -> None:
        """End the process in which structures are tried."""
        if self._checks is not None:
            self._checks.close()
            self._checks = None

    def encode(self, text: str, most: int | None = None, *, special: bool = True) -> list[int]:
        """Token ids of plain text. special: with the special tokens that the tokenizer puts around it.

        TooManyTokensError, after a part of the text, where it is plain that there are more than `most`.
        """
        return self._encode(text, most, add_special_tokens=special)

    def encode_chat(
        self,
        messages: Sequence[ChatTurn],
        tools: Sequence[str] = (),
        most: int | None = None,
        options: TemplateOptions = PLAIN_TEMPLATE,
    ) -> list[int]:
        """Token ids of a conversation, rendered with the model's own template; most: as for `encode`.

        tools: JSON objects; where the template has no place for them, they are told in our words.
        Raises InvalidRequestError if the model has no template, or the template refuses the conversation.
        """
        text = self._template.render(messages, tools, self.dialect, options)
        # The template has written the special tokens already.
        return self._encode(text, most, add_special_tokens=False)

    def held(
        self, request: GenerationRequest, prompt: Sequence[int], sampling: SamplingParams
    ) -> SamplingParams:
        """The request's sampling parameters, with the form that answers behind these tokens are held to.

        InvalidRequestError if they cannot be: what is wrong with its tools or its choice among them.
        """
        thinking: Thinking = "no"
        if request.is_chat:
            end = self.decode(prompt[-PROMPT_END_TOKENS:], skip_special_tokens=False)
            thinking = thinking_behind(self.dialect, end)
        structure = answer_form(request, self.dialect, thinking)
        sampling = replace(sampling, structure=structure)
        most = sampling.max_reasoning_tokens
        if most is None and request.template.effort == "none" and not self._template.knows_effort:
            most = 0
        if thinking == "no":
            return sampling
        marks = thought_marks(self.dialect, self._mark_tokens, open=thinking == "open")
        if marks is None and sampling.max_reasoning_tokens is not None:
            raise InvalidRequestError(
                "max_reasoning_tokens is not available with this model: the marks of its thoughts are no "
                "tokens of their own",
                "max_reasoning_tokens",
            )
        return replace(sampling, max_reasoning_tokens=most, thought=marks)

    def _mark_tokens(self, mark: str) -> tuple[int, ...]:
        """Tokens of a mark; none if it does not begin with one of its own, which is in no other text."""
        ids = tuple(self._ids(mark, False))
        return ids if ids and ids[0] in self._added else ()

    async def check_structure(
        self, structure: Structure, vocab_size: int, eos_token_ids: tuple[int, ...], owner: str = ""
    ) -> None:
        """InvalidRequestError if outputs cannot be held to it: what is wrong with it, or with the model.

        Unlike the other methods this one is the event loop's.
        """
        if self._checks is None or self._checks.model != (vocab_size, eos_token_ids):
            if self._checks is not None:
                self._checks.close()
            self._checks = StructureChecks(self._read, vocab_size, eos_token_ids)
        await self._checks.check(structure, owner)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, all at once."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def new_detokenizer(
        self,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        kept: Collection[str] = frozenset(),
    ) -> Detokenizer:
        """Incremental decoder of one output that follows `prompt_ids`. kept: special tokens that it shows."""
        return make_detokenizer(self._vocabulary, prompt_ids, self._hidden(skip_special_tokens, kept))

    def _hidden(self, skip_special_tokens: bool, kept: Collection[str]) -> Collection[int]:
        special = self._vocabulary.special_tokens
        if not skip_special_tokens:
            return ()
        return {token_id for token_id, text in special.items() if text not in kept} if kept else special

    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes, special tokens included; half a character is possible."""
        return self._vocabulary.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        """True for tokens that steer the model and are no text."""
        return self._vocabulary.special(token_id)

    def _encode(self, text: str, most: int | None, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the text is not valid Unicode: unpaired surrogate at character {error.start}"
            ) from error
        if most is not None and len(text) > LIKELY_CHARACTERS * most:
            self._refuse_if_long(text, most)
        return self._ids(text, add_special_tokens)

    def _refuse_if_long(self, text: str, most: int) -> None:
        """Count piece by piece, to refuse what cannot fit before it takes seconds and a gigabyte."""
        counted = 0
        for begin in range(0, len(text), PIECE_CHARACTERS):
            # A token that a cut divides becomes some more.
            counted += len(self._ids(text[begin : begin + PIECE_CHARACTERS], False)) - CUT_TOKENS
            if counted * (1 - CUT_SHARE) > most:
                raise TooManyTokensError(most)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        # `encode` keeps Python's lock while it works, seconds for a long text; this one gives it back. "Fast"
        # leaves out where in the text each token stands, which takes most of the memory.
        try:
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except BaseException as error:
            if type(error) is not Exception and type(error).__module__ != _PANIC:
                raise
            raise InvalidRequestError(
                f"the model's tokenizer gives up on this text: {quoted(str(error))}"
            ) from error
        ids: list[int] = encoding.ids
        return ids

"""A tokenizer without a model: every byte of UTF-8 is a token."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence

from llguidance import LLMatcher

from tidepipe_common.dialects import dialect_named
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.structures.errors import StructureError, in_our_words
from tidepipe_common.structures.grammar import grammar
from tidepipe_common.types.request import PLAIN_TEMPLATE, ChatTurn, GenerationRequest
from tidepipe_common.types.sampling import Pooling, SamplingParams
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import TemplateOptions

VOCAB_SIZE = 256


class ByteDetokenizer:
    """Whole characters only, as the real one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(bytes(list(token_ids)))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteText:
    """A TextPort. Its model writes as `dialect` has it; chats show calls and thoughts of their history."""

    vocab_size = VOCAB_SIZE
    pooling: Pooling | None = Pooling.LAST

    def __init__(self, dialect: str = "json", template: str = " ", ending: str = "") -> None:
        """template: whatever tells the marks of thoughts. ending: of each chat's prompt."""
        self.dialect = dialect_named(dialect, template)
        self._ending = ending

    def close(self) -> None:
        pass

    def encode(self, text: str, most: int | None = None, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def encode_chat(
        self,
        messages: Sequence[ChatTurn],
        tools: Sequence[str] = (),
        most: int | None = None,
        options: TemplateOptions = PLAIN_TEMPLATE,
    ) -> list[int]:
        if any(turn.role == "tool" and not turn.tool_call_id for turn in messages):
            raise InvalidRequestError("the template does not accept these messages", "messages")
        texts = [f"{turn.role}: {turn.reasoning}{turn.content}{turn.tool_calls}\n" for turn in messages]
        return self.encode("".join(texts) + self._ending)

    def held(
        self, request: GenerationRequest, prompt: Sequence[int], sampling: SamplingParams
    ) -> SamplingParams:
        return sampling

    async def check_structure(
        self, structure: Structure, vocab_size: int, eos_token_ids: tuple[int, ...], owner: str = ""
    ) -> None:
        structure.check()
        try:
            if problem := LLMatcher.validate_grammar(grammar(structure)):
                problem = in_our_words(problem)
        except StructureError as error:
            problem = str(error)
        if problem:
            raise InvalidRequestError(f"response_format: {problem[:100]}", "response_format")

    def new_detokenizer(
        self, prompt_ids: Sequence[int], skip_special_tokens: bool, kept: Collection[str] = frozenset()
    ) -> ByteDetokenizer:
        return ByteDetokenizer()

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return False

"""A dialect: how a model family writes thoughts and calls of tools."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tidepipe_common.dialects.harmony import MARKS, HarmonyReader
from tidepipe_common.dialects.reader import Grammar, PausingReader, TextReader, ThoughtMarks
from tidepipe_common.dialects.tools import Tools

SHORT_ID = 9
CallIds = Literal["usual", "short", "numbered"]
"""usual: OpenAI's. short: of 9 letters and digits, others Mistral's templates refuse. numbered: Kimi's."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls with arguments in JSON are written, so that the family's reader understands them.

    before, then each call as begin + name + middle + arguments + end, `between` between them, then after.
    It is the family's own form where its arguments are JSON, otherwise one that its reader takes as well.
    many: whether its models were taught to make several calls at once.
    """

    begin: str
    middle: str
    end: str
    before: str = ""
    between: str = ""
    after: str = ""
    many: bool = True

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """The text of these calls: name and arguments of each."""
        texts = [f"{self.begin}{name}{self.middle}{arguments}{self.end}" for name, arguments in calls]
        return f"{self.before}{self.between.join(texts)}{self.after}"


@dataclass(frozen=True)
class Dialect:
    """One family's way to write, as one model's tokenizer has it.

    grammar: of its calls; None: none are looked for, or its messages are harmony's. thoughts: None: it has
    none. form: how it can be made to call; None: not at all. ids: of its calls. special: those of its marks
    that are special tokens, which a detokenizer leaves out unless it is told to keep them.
    """

    name: str
    grammar: Grammar | None = None
    thoughts: ThoughtMarks | None = None
    form: CallForm | None = None
    harmony: bool = False
    ids: CallIds = "usual"
    special: frozenset[str] = frozenset()
    special_of_calls: frozenset[str] = frozenset()

    def call_id(self, key: str, name: str, number: int) -> str:
        """The id of a call, as the family's template takes it back: the same for the same `key`.

        number: calls before it, in the whole conversation.
        """
        if self.ids == "numbered":
            return f"functions.{name}:{number}"
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return digest[:SHORT_ID] if self.ids == "short" else f"call_{digest}"

    def kept_tokens(self, *, tools: bool) -> frozenset[str]:
        """The special tokens that its reader must see, in a chat with or without tools."""
        return self.special | self.special_of_calls if tools else self.special

    def reads(self, *, tools: bool) -> bool:
        """False if answers are words and nothing else, so that no reader is needed."""
        return self.thinks or (tools and self.grammar is not None)

    @property
    def thinks(self) -> bool:
        """True if it can tell thoughts from words."""
        return self.harmony or self.thoughts is not None

    def thinking_after(self, prompt: str) -> bool:
        """True if an answer to this prompt, or to one with this end, begins inside a thought."""
        return self.thoughts is not None and prompt.rstrip().endswith(self.thoughts.begins)

    def reader(self, tools: Tools | Sequence[str] = (), *, thinking: bool = False) -> PausingReader:
        """Reader of one answer.

        tools: that it may call, JSON of each; several readers may share them. thinking: see `thinking_after`.
        """
        known = tools if isinstance(tools, Tools) else Tools(tools)
        if self.harmony:
            return HarmonyReader(known)
        return TextReader(self.grammar if known else None, self.thoughts, known, thinking=thinking)


HARMONY_MARKS = frozenset(MARKS)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one prompt are read. thinking: they begin inside a thought, which the prompt opened.

    calls_before: calls of tools in the conversation so far.
    """

    dialect: Dialect
    thinking: bool = False
    calls_before: int = 0

    def reader(self, tools: Tools | Sequence[str]) -> PausingReader:
        """Reader of one of the answers. tools: as for `Dialect.reader`."""
        return self.dialect.reader(tools, thinking=self.thinking)

    def call_id(self, key: str, name: str, index: int) -> str:
        """Id of the call with this index in its answer; the same for the same `key`."""
        return self.dialect.call_id(key, name, self.calls_before + index)

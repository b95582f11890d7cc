"""A dialect: how a model family writes thoughts and calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidepipe_common.dialects.harmony import MARKS, HarmonyReader
from tidepipe_common.dialects.parts import Reader
from tidepipe_common.dialects.reader import Grammar, TextReader, ThoughtMarks


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
    none. form: how it can be made to call; None: not at all. special: those of its marks that are special
    tokens, which a detokenizer leaves out unless it is told to keep them.
    """

    name: str
    grammar: Grammar | None = None
    thoughts: ThoughtMarks | None = None
    form: CallForm | None = None
    harmony: bool = False
    special: frozenset[str] = frozenset()
    special_of_calls: frozenset[str] = frozenset()

    @property
    def keeps_special_tokens(self) -> bool:
        """True if some of its marks are special tokens."""
        return bool(self.special or self.special_of_calls)

    def kept_tokens(self, *, tools: bool) -> frozenset[str]:
        """The special tokens that its reader must see, in a chat with or without tools."""
        return self.special | self.special_of_calls if tools else self.special

    def reads(self, *, tools: bool) -> bool:
        """False if answers are words and nothing else, so that no reader is needed."""
        return self.harmony or self.thoughts is not None or (tools and self.grammar is not None)

    def thinking_after(self, prompt: str) -> bool:
        """True if an answer to this prompt, or to one with this end, begins inside a thought."""
        return self.thoughts is not None and prompt.rstrip().endswith(self.thoughts.begins)

    def reader(self, tools: Sequence[str] = (), *, thinking: bool = False) -> Reader:
        """Reader of one answer. tools: JSON of each that it may call; thinking: as `thinking_after` says."""
        if self.harmony:
            return HarmonyReader(tools)
        return TextReader(self.grammar if tools else None, self.thoughts, tools, thinking=thinking)


HARMONY_MARKS = frozenset(MARKS)

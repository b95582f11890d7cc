"""A prompt in numbers: what says something about the length of its answer.

Needs the text and nothing else: no tokenizer, no model, no network. Only numbers leave the place where the
text is (`docs/decisions`), so whoever schedules or learns never sees a prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from zlib import crc32

from tidepipe_common.types.request import ChatTurn, Prompt

VERSION = 2
"""Of the meaning of the numbers; models say which one they were trained on."""

BUCKETS = 16_384
"""Hash buckets of words and pairs of words: as many as two bytes on the wire can name."""
MAX_BUCKETS = 256
"""Kept of one prompt at most: the first."""
HEAD_CHARACTERS = 1200
TAIL_CHARACTERS = 800
"""Of a long message beginning and end are read: instructions stand there, documents in between."""

CUES: dict[str, tuple[str, ...]] = {
    "brief": ("brief", "briefly", "short", "shortly", "concise", "quickly", "summarize", "summary", "one"),
    "long": ("detailed", "detail", "explain", "describe", "essay", "story", "elaborate", "thorough", "guide"),
    "list": ("list", "steps", "ideas", "tips", "examples", "ways", "reasons", "questions", "items", "bullet"),
    "compose": ("write", "compose", "create", "generate", "draft", "imagine", "poem", "letter", "email"),
    "choose": ("classify", "label", "true", "false", "identify", "categorize", "choose", "select", "whether"),
    "transform": ("translate", "rewrite", "correct", "convert", "paraphrase", "edit", "replace", "rephrase"),
    "code": ("code", "function", "python", "sql", "program", "javascript", "html", "algorithm", "regex"),
    "reckon": ("many", "much", "total", "cost", "each", "times", "percent", "half", "twice", "average"),
    "question": ("what", "who", "when", "where", "which", "why", "how"),
}
"""Words that instructions use, by kind."""

PHRASES = ("step by step", "yes or no", "in one word", "in one sentence", "only the")

DENSE = (
    "message_characters",
    "context_characters",
    "words",
    "lines",
    "turns",
    "answers_before",
    "last_answer_characters",
    "mean_answer_characters",
    "system_characters",
    "mean_word",
    "distinct_words",
    "numbers",
    "question_marks",
    "sentences",
    "list_lines",
    "code_marks",
    "capitals",
    "non_ascii",
    "ends_with_question",
    "ends_with_colon",
    "asked_words",
    "asked_items",
    *(f"cue_{name}" for name in CUES),
    *(f"says_{phrase.replace(' ', '_')}" for phrase in PHRASES),
    "tools",
    "must_call",
    "thinks",
    "structure_characters",
    "least_tokens",
    "stop_strings",
)
"""Names of the numbers, in order."""

_CUE_OF = {word: index for index, words in enumerate(CUES.values()) for word in words}
_NO_CAPITALS = dict.fromkeys(range(ord("A"), ord("Z") + 1))
_WORDS = re.compile(r"[a-z]+|[0-9]+|[^\x00-\x7f]")
_ASKED_LENGTH = re.compile(r"(\d{1,4}|one|two|three|four|five)[- ](?:or \w+ )?(word|sentence|paragraph|page)")
_ASKED_ITEMS = re.compile(
    r"(?:list|give|name|write|suggest|provide|generate|create)(?: me)?(?: \w+)? "
    r"(\d{1,3}|two|three|four|five|ten) "
)
_WORDS_PER = {"word": 1, "sentence": 20, "paragraph": 80, "page": 400}
_NUMERALS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "ten": 10}


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is to be given, as far as its request says it.

    key: what tells manners of one application apart, such as how hard to think. tools: that it may call.
    must_call: it is a call. thinks: it may think first. structure_characters: of the schema or expression
    that it is held to. least_tokens: it may not end before. stop_strings: that end it.
    """

    key: str = ""
    tools: int = 0
    must_call: bool = False
    thinks: bool = False
    structure_characters: int = 0
    least_tokens: int = 0
    stop_strings: int = 0

    @property
    def numbers(self) -> tuple[float, ...]:
        """The last of DENSE."""
        return (
            math.log1p(self.tools),
            float(self.must_call),
            float(self.thinks),
            math.log1p(self.structure_characters),
            math.log1p(self.least_tokens),
            float(self.stop_strings),
        )


PLAINLY = Manner()


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """A prompt in numbers.

    dense: values of DENSE, in order; empty if the text is not known (token ids).
    buckets: distinct hash buckets of its words and pairs of words, rising: in the order of the words a prompt
    could be read by whoever has a list of words.
    template: hash of the system message and of the manner of answering, 0 for neither: requests of one
    application share it, and those that think, or must call a tool, are told apart from those that do not.
    client: hash of who asks, 0 if nobody said so.
    unlearned: who asks wants nothing to be learned from the answer; it may be predicted all the same.
    owner: hash of the API key's owner, 0 without one: what is remembered is shared out among them.
    """

    dense: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()
    template: int = 0
    client: int = 0
    unlearned: bool = False
    owner: int = 0

    def fault(self) -> str | None:
        """Why this cannot come from `prompt_features`, or None."""
        if self.dense and len(self.dense) != len(DENSE):
            return f"{len(self.dense)} prompt numbers, but version {VERSION} has {len(DENSE)}"
        if not all(map(math.isfinite, self.dense)):
            return "prompt numbers must be finite"
        if len(self.buckets) > MAX_BUCKETS or any(not 0 <= bucket < BUCKETS for bucket in self.buckets):
            return f"at most {MAX_BUCKETS} buckets below {BUCKETS} may be given"
        if not all(0 <= one < 2**32 for one in (self.template, self.client, self.owner)):
            return "template, client and owner are 32-bit hashes"
        return None


def prompt_features(prompt: Prompt, client: str = "", manner: Manner = PLAINLY) -> PromptFeatures:
    """Read a prompt: plain text, a conversation, or token ids (of which only the client counts here)."""
    who = name_hash(client)
    if isinstance(prompt, str):
        return _read(prompt, "", (), who, manner)
    turns = [turn for turn in prompt if isinstance(turn, ChatTurn)]
    if not turns:
        return PromptFeatures(client=who)
    system = "\n".join(turn.content for turn in turns if turn.role in ("system", "developer"))
    return _read(turns[-1].content, system, turns[:-1], who, manner)


def _read(
    message: str, system: str, before: Sequence[ChatTurn], client: int, manner: Manner
) -> PromptFeatures:
    text = message
    if len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS:
        text = f"{text[:HEAD_CHARACTERS]}\n{text[-TAIL_CHARACTERS:]}"
    stripped = text.rstrip()
    lowered = text.lower()
    words = _WORDS.findall(lowered)
    cues = [0.0] * len(CUES)
    for word in words:
        if (kind := _CUE_OF.get(word)) is not None:
            cues[kind] += 1.0
    count = len(words)
    answers = [math.log1p(len(turn.content)) for turn in before if turn.role == "assistant"]
    dense = (
        math.log1p(len(message)),
        math.log1p(sum(len(turn.content) for turn in before)),
        math.log1p(count),
        float(text.count("\n")),
        float(len(before)),
        float(len(answers)),
        answers[-1] if answers else 0.0,
        sum(answers) / len(answers) if answers else 0.0,
        math.log1p(len(system)),
        sum(map(len, words)) / count if count else 0.0,
        len(set(words)) / count if count else 0.0,
        float(sum(word.isdigit() for word in words)),
        float(text.count("?")),
        float(text.count(". ") + stripped.endswith(".")),
        float(text.count("\n-") + text.count("\n*") + text.count("\n1")),
        float(text.count("```") + text.count("{") + text.count("();") + text.count("def ")),
        (len(text) - len(text.translate(_NO_CAPITALS))) / len(text) if text else 0.0,
        float(not text.isascii()),
        float(stripped.endswith("?")),
        float(stripped.endswith(":")),
        _asked_words(lowered),
        _asked_items(lowered),
        *cues,
        *(float(phrase in lowered) for phrase in PHRASES),
        *manner.numbers,
    )
    template = name_hash(f"{system}\0{manner.key}" if manner.key else system)
    return PromptFeatures(dense, _buckets(words), template, client)


def _buckets(words: Sequence[str]) -> tuple[int, ...]:
    hashes = [_hash(word) for word in words]
    found = dict.fromkeys(one % BUCKETS for one in hashes)
    # Pairs carry the order of words ("how many", "write a").
    found.update(dict.fromkeys((31 * a + b) % BUCKETS for a, b in pairwise(hashes)))
    return tuple(sorted(islice(found, MAX_BUCKETS)))


@lru_cache(maxsize=16_384)
def _hash(word: str) -> int:
    # A few thousand words make up most of all text.
    return crc32(word.encode(errors="replace"))


def _asked_words(lowered: str) -> float:
    """Logarithm of the length that is asked for ("in 50 words", "two paragraphs"); 0 for none."""
    found = _ASKED_LENGTH.search(lowered)
    return math.log1p(_number(found[1]) * _WORDS_PER[found[2]]) if found else 0.0


def _asked_items(lowered: str) -> float:
    found = _ASKED_ITEMS.search(lowered)
    return float(min(_number(found[1]), 100)) if found else 0.0


def _number(text: str) -> int:
    return int(text) if text.isdigit() else _NUMERALS[text]


def name_hash(text: str) -> int:
    """Of who or what a text names, 32 bits; 0 for none."""
    return (crc32(text.encode(errors="replace")) or 1) if text else 0

"""Parts cut at places that depend on the text alone, so that events which are made again are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidepipe_common.dialects.parts import CallArguments, Part, Thought, Words

CUT_CHARACTERS = 32


class Cutter:
    """Texts of one kind in a row are cut anew, in pieces of CUT_CHARACTERS; the last one may be shorter."""

    def __init__(self) -> None:
        self._held: Thought | Words | CallArguments | None = None

    def feed(self, parts: Sequence[Part]) -> Iterator[Part]:
        """What is certain now."""
        for part in parts:
            if not isinstance(part, Thought | Words | CallArguments):
                yield from self.end()
                yield part
                continue
            if self._held is not None and type(self._held) is not type(part):
                yield from self.end()
            text = ("" if self._held is None else self._held.text) + part.text
            whole = len(text) - len(text) % CUT_CHARACTERS
            for begin in range(0, whole, CUT_CHARACTERS):
                yield _same(part, text[begin : begin + CUT_CHARACTERS])
            self._held = _same(part, text[whole:]) if whole < len(text) else None

    def end(self) -> Iterator[Part]:
        """What was held back, now that nothing more of it comes."""
        held, self._held = self._held, None
        if held is not None:
            yield held


def _same(part: Thought | Words | CallArguments, text: str) -> Thought | Words | CallArguments:
    match part:
        case Thought():
            return Thought(text)
        case Words():
            return Words(text)
        case CallArguments(index):
            return CallArguments(index, text)

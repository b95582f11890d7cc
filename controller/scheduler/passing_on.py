"""An instance's own guess whether its sequences go on elsewhere as soon as their prompts are done.

Where they do, a new one is not given a row in the next step: that step is long, for prompts are in it, and
the sequence would be taken along until its end, while its blocks could be on their way. So its second token
comes where it goes on. Nobody has to say what an instance's role is, and one whose sequences stay notices
after two of them.
"""

from __future__ import annotations

from collections import deque

SEEN, MOST = 8, 7
"""Of so many sequences, this many went on elsewhere: then the next ones are expected to, too."""
FEW = 4
"""Tokens of output, after which a sequence has not gone at once."""
HELD_S = 0.15
"""That a router may take to say where one goes on: its loop, two messages, and a step that is under way."""


class PassingOn:
    """Of the last sequences whose prompts were computed here: did they leave?"""

    def __init__(self) -> None:
        self._gone: deque[bool] = deque(maxlen=SEEN)

    def left(self, produced: int) -> None:
        """One goes on elsewhere that has produced so many tokens here."""
        if produced <= FEW:
            self._gone.append(True)

    def stayed(self, produced: int) -> None:
        """One has ended here, or is not waited for any more, with so many tokens."""
        if produced > FEW:
            self._gone.append(False)

    def waited_for(self) -> None:
        """One was kept for its way out, and nobody asked for it."""
        self._gone.append(False)

    @property
    def expected(self) -> bool:
        """Will the next one leave?"""
        return self._gone.count(True) >= MOST

    def keeps(self, first_token_at: float, now: float) -> bool:
        """Is one that had its first token then not given a row yet?"""
        return self.expected and now < first_token_at + HELD_S

"""How a model's text is read, as whoever started it says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextChoices:
    """Names, see the settings of the same names; empty: nothing is said."""

    tool_parser: str = ""
    reasoning_parser: str = ""
    pooling: str = ""

    def over(self, usual: TextChoices) -> TextChoices:
        """These, and the usual ones where they say nothing."""
        return TextChoices(
            self.tool_parser or usual.tool_parser,
            self.reasoning_parser or usual.reasoning_parser,
            self.pooling or usual.pooling,
        )


NO_CHOICES = TextChoices()
"""Nothing is said."""

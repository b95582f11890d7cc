"""Which of its tools a chat may call, and which it must."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TOOL_NAME_CHARACTERS, MAX_TOOLS, check_characters, check_count


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """mode: `required`: the answer is a call. `none`: there is none.

    names: only these may be called; empty: all of them. parallel: an answer may have several calls.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True

    def check(self, tools: int) -> None:
        """InvalidRequestError if it cannot be made of so many tools."""
        check_count("tool_choice", len(self.names), MAX_TOOLS)
        for name in self.names:
            check_characters("a name in tool_choice", name, MAX_TOOL_NAME_CHARACTERS, "tool_choice")
        if not tools and (self.mode == "required" or self.names):
            raise InvalidRequestError("tool_choice asks for a call, but there are no tools", "tool_choice")

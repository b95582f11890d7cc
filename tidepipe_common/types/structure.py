"""The form that an output is held to: a JSON schema or a regular expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_STRUCTURE_BYTES, check_bytes, text_bytes


@dataclass(frozen=True, slots=True)
class Structure:
    """text: the schema as JSON, or the expression in the syntax of Rust's regex crate."""

    kind: Literal["json_schema", "regex"]
    text: str

    @property
    def title(self) -> str:
        """What it is, in words."""
        return "JSON schema" if self.kind == "json_schema" else "regular expression"

    def check(self) -> None:
        """Refuse at once what needs no trial; the rest is found out by `tidepipe_common.structures`."""
        check_bytes("response_format", text_bytes(self.text), MAX_STRUCTURE_BYTES)
        backslashes = len(self.text) - len(self.text.rstrip("\\"))
        if self.kind == "regex" and backslashes % 2:
            raise InvalidRequestError(
                "response_format: the regular expression is not usable: it ends in a lone backslash",
                "response_format",
            )

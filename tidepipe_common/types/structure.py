"""The form that an output is held to: a JSON schema, a regular expression, or a form around schemas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_STRUCTURE_BYTES, check_bytes, text_bytes

Form: TypeAlias = "str | list[Form] | dict[str, Any]"
"""Text with schemas in it, see `tidepipe_common.structures.forms`; JSON values."""


@dataclass(frozen=True, slots=True)
class Structure:
    """text: the schema as JSON, the expression in the syntax of Rust's regex crate, or the form as JSON.

    A form (`tidepipe_common.structures.forms`) is made by routers alone, of what a client asks for and of the
    model's own marks. field: what in the request it comes from.
    """

    kind: Literal["json_schema", "regex", "composed"]
    text: str
    field: str = "response_format"

    @property
    def title(self) -> str:
        """What it is, in words."""
        match self.kind:
            case "json_schema":
                return "JSON schema"
            case "regex":
                return "regular expression"
        return "form of calls" if self.field == "tools" else "form"

    def check(self) -> None:
        """Refuse at once what needs no trial; the rest is found out by `tidepipe_common.structures`."""
        name = f"{self.field} that answers are held to" if self.kind == "composed" else self.field
        check_bytes(name, text_bytes(self.text), MAX_STRUCTURE_BYTES, self.field)
        backslashes = len(self.text) - len(self.text.rstrip("\\"))
        if self.kind == "regex" and backslashes % 2:
            raise InvalidRequestError(
                "response_format: the regular expression is not usable: it ends in a lone backslash",
                "response_format",
            )

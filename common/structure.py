"""The form that an output is held to: a JSON schema or a regular expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.errors import InvalidRequestError
from common.limits import MAX_STRUCTURE_BYTES, check_bytes, text_bytes

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_ONE_WAY = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written in one way only: a small model that may put whitespace anywhere puts it everywhere."""


@dataclass(frozen=True, slots=True)
class Structure:
    """text: the schema as JSON, or the expression in the syntax of Rust's regex crate."""

    kind: Literal["json_schema", "regex"]
    text: str

    def grammar(self) -> str:
        """Grammar for llguidance. InvalidRequestError if the text is no JSON."""
        from llguidance import LLMatcher  # late: only requests with a structure pay for it

        if self.kind == "regex":
            return LLMatcher.grammar_from_regex(self.text)
        try:
            return LLMatcher.grammar_from_json_schema(self.text, overrides=_ONE_WAY)  # type: ignore[arg-type]
        except ValueError as error:
            raise InvalidRequestError(
                f"response_format: the JSON schema is not usable: {error}", "response_format"
            ) from None

    def check_size(self) -> None:
        """Raise InvalidRequestError if it is larger than a structure may be."""
        check_bytes("response_format", text_bytes(self.text), MAX_STRUCTURE_BYTES)

    def check(self, tokenizer: LLTokenizer | None = None) -> None:
        """Raise InvalidRequestError if no output can be held to it. Takes a while for large schemas."""
        from llguidance import LLMatcher

        self.check_size()
        problem = LLMatcher.validate_grammar(self.grammar(), tokenizer)
        if problem:
            what = "JSON schema" if self.kind == "json_schema" else "regular expression"
            raise InvalidRequestError(
                f"response_format: the {what} is not usable: {' '.join(problem.split())[:300]}",
                "response_format",
            )

"""What is wrong with a structure, in the words of whoever wrote it: never in those of a library."""

from __future__ import annotations

import re

from tidepipe_common.errors import InvalidRequestError

TOO_COMPLEX = "it is too complex: make it smaller"
NO_TEXT = "no text conforms to it"
_UNKNOWN = "outputs cannot be held to it here"
_MAX_NAMES_CHARACTERS = 200

_QUOTED = "1 | %llguidance"
"""What follows is the grammar, which nobody but us has written."""
_BOUND = r"(?:exclusive)?[mM]in(?:imum|Length|Items|Properties)|required"
_OTHER_BOUND = r"(?:exclusive)?[mM]ax(?:imum|Length|Items|Properties)"
_SENTENCES: tuple[tuple[str, str], ...] = (
    (r"Unimplemented keys: \[(.*?)\]", "it has keywords that are not supported: {}"),
    (r"Expected f64 for '([$\w]+)'", "{} must be a number"),
    (r"Expected positive integer for '([$\w]+)'", "{} must be a whole number, not below 0"),
    (r"Expected (array|string|object|bool)\w* for '([$\w]+)'", "it has a {1} that is no {0}"),
    (r"schema must be an object or boolean", "a part of it is neither an object nor a boolean"),
    (r"([$\w]+) must be (a string or array of strings|an? (?:array|object|string))", "{} must be {}"),
    (r"Invalid type: (\S+)", "it has the type {}, which JSON does not have"),
    (r"invalid multiple of", "multipleOf must be more than 0"),
    (r"is not present in a registry", "it refers to what is not in it; nothing is fetched"),
    (r"Unknown format: ([\w.-]+)", "the format {} is not supported"),
    (
        r"oneOf constraints are not supported",
        "oneOf is supported only where it is plain that no value fits two of its parts; use anyOf",
    ),
    (r"Pointer .* does not exist|Unable to (?:resolve|find)", "a $ref names what the schema does not have"),
    (
        r"circular references",
        "a $ref that leads back to itself can have no other keywords beside it",
    ),
    (
        r"only supported when all keys listed",
        "minProperties and maxProperties are supported only where all of the properties are required",
    ),
    (r"are not disjoint", "two expressions of patternProperties fit the same name"),
    (
        rf"({_BOUND})\b.* (?:greater than|equal to|>) ({_OTHER_BOUND})",
        "no value fits it: {} and {} leave none",
    ),
    (r"does not contain a multiple|contains no integer", "no value fits it: no such number is in its bounds"),
    (r"Unsatisfiable|options in anyOf|schema is false|is unsatisfiable", "no value fits it"),
    (r"NoExtension|Regex is empty", NO_TEXT),
    (r"too many digits", "a number in it has more digits than are supported"),
    (r"range: min=", "its bounds of numbers are not supported"),
    (
        r"(?i)look-?around|look-ahead|WordUnicode|WordAscii",
        "an expression in it has a look-around or word boundary",
    ),
    (r"regex parse error:.*error: ([A-Za-z ,]+)", "an expression in it cannot be read: {}"),
    (
        r"row has \d+ items|Unable to determine|TooComplex|[Tt]oo (?:large|big|complex|many)"
        r"|limit|exceeded|fuel",
        TOO_COMPLEX,
    ),
)


class StructureError(InvalidRequestError):
    """No output can be held to the structure, or no longer, because of what the client sent."""

    def __init__(self, message: str, param: str = "response_format") -> None:
        super().__init__(message, param)


def in_our_words(problem: str) -> str:
    """What the library says, where it is known; a general sentence for the rest."""
    problem = " ".join(problem.partition(_QUOTED)[0].split())
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, problem):
            names = [name.replace('"', "")[:_MAX_NAMES_CHARACTERS].strip() for name in found.groups()]
            return sentence.format(*names)
    return _UNKNOWN

"""Structures are tried out beside the process: whatever they cost, the answer is a sentence."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.byte_tokenizer import END, byte_tokenizer
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.structures import checks
from tidepipe_common.structures.checks import StructureProcess
from tidepipe_common.types.structure import Structure

LIBRARY = re.compile(r"guidance|Some\(|NoExt|verbose|json-schema:|f64|sys\.|Regex|compile|retriev")
"""Words that are not for clients."""


def schema(value: Any) -> Structure:
    return Structure("json_schema", json.dumps(value))


def conjunction(patterns: int) -> Structure:
    return schema({"type": "string", "allOf": [{"pattern": f"a.*{number}"} for number in range(patterns)]})


@pytest.fixture(scope="module")
def process() -> Iterator[StructureProcess]:
    tokenizer = byte_tokenizer()
    process = StructureProcess(tokenizer.to_str, tokenizer.get_vocab_size(), [tokenizer.token_to_id(END)])
    yield process
    process.close()


@pytest.mark.parametrize(
    ("structure", "why"),
    [
        # In the process itself, the first ends in an abort for want of memory, whatever the limits given.
        (conjunction(30), "too complex"),
        (
            schema({"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(600)}}),
            "not usable",
        ),
        (schema({"$ref": "#"}), "not usable"),
        (schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}), "uniqueItems"),
        (schema({"type": "objekt"}), "not usable"),
        (schema({"$ref": "#/nowhere"}), "not usable"),
        (schema(False), "not usable"),
        (Structure("json_schema", "{"), "not usable"),
        (Structure("json_schema", '{"items":' * 6000 + "{}" + "}" * 6000), "not usable"),
        (Structure("regex", "(a"), "unclosed group"),
        (Structure("regex", r"[^\s\S]"), "no text conforms"),
        (
            schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            "no text",
        ),
        (schema({"type": "integer", "minimum": 10**40}), "2^53"),
        (schema({"type": "number", "minimum": 1e20}), "bounds"),
        (Structure("json_schema", '{"const": ' + "9" * 5000 + "}"), "digits"),
        (schema({"minimum": "a"}), "minimum must be a number"),
        (schema({"type": "string", "minLength": 3, "maxLength": 1}), "minLength and maxLength"),
        (schema({"anyOf": [{"$ref": "https://elsewhere"}]}), "nothing is fetched"),
        (schema({"type": "array", "contains": {}, "not": {}}), "contains, not"),
        (schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "anyOf"),
        (schema({"type": "string", "format": "moon"}), "format moon"),
        (schema({"type": "object", "minProperties": 2}), "minProperties"),
        (Structure("regex", r"\bfoo"), "word boundary"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_in_one_line(
    process: StructureProcess, structure: Structure, why: str
) -> None:
    structure.check()
    problem = process.problem(structure)
    assert why in problem
    assert "\n" not in problem and not LIBRARY.search(problem)


@pytest.mark.parametrize(
    "structure",
    [
        schema({"type": "object"}),
        schema(True),
        schema({"enum": ["\u2028", '"\\', "\x7f", "😀"]}),
        Structure("regex", "(a{1000}){1000}"),
        Structure("regex", "a\nb/c|"),
        Structure("regex", "<end>"),
    ],
)
def test_what_can_be_kept_to_is_not(process: StructureProcess, structure: Structure) -> None:
    assert process.problem(structure) == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_process_is_replaced_when_it_is_gone_or_hangs(
    process: StructureProcess, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert process.problem(schema({})) == ""
    pid = process.pid
    assert pid is not None
    monkeypatch.setattr(checks, "TAKEN_S", 2.0)
    os.kill(pid, number)
    assert process.problem(schema({})) == ""
    assert process.pid != pid


@pytest.mark.parametrize("text", ["a" * 70_000, "a\\", "\\\\\\"])
def test_some_expressions_need_no_trial(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="response_format"):
        Structure("regex", text).check()


def test_a_model_without_an_end_has_no_structures() -> None:
    tokenizer = byte_tokenizer()
    process = StructureProcess(tokenizer.to_str, tokenizer.get_vocab_size(), [])
    assert "no end-of-sequence token" in process.problem(schema({}))

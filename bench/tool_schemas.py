"""Are arguments of forced calls always valid? Generated functions of many kinds, each called once.

    python -m bench.tool_schemas -o results/tool-schemas.json --endpoint http://127.0.0.1:8080/v1
    python -m bench.tool_schemas -o results/tool-schemas.json --drawn ~/.cache/tidepipe/models/smollm2-135m

With an endpoint a model calls them (`tool_choice: required`, at a high temperature). Drawn: no model, tokens
are drawn evenly from those that are allowed, which tries more than any model would. jsonschema is the judge.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from tidepipe_common.dialects import CallArguments, CallBegins, dialect_for
from tidepipe_common.dialects.calling import Function, required
from tidepipe_common.structures.forms import written
from tidepipe_common.structures.grammar import make_matcher, make_tokenizer, try_out
from tidepipe_common.types.structure import Structure

FUNCTIONS = 200
MAX_TOKENS = 1500
_NAMES = [
    *(
        "city",
        "unit",
        "größe",
        "名前",
        "user_id",
        "is-open",
        "naïve",
        "$price",
        "a b",
        "items",
        "from",
        "émoji😀",
    ),
    *("start_date", "limit", "query", "tags", "options", "recursive", "x", "with.dots", "type", "properties"),
]
_WORDS = ["red", "blue", "größer", "東京", "", "a/b", 'quo"te', "line\nbreak", "null", "true", "0", "😀"]
_FORMATS = ["date", "time", "email", "uuid", "ipv4", "date-time"]
_PATTERNS = ["^[A-Z]{3}$", r"^\d{3}-\d{4}$", "^(GET|POST)$", "^[a-z_]+$", "^#[0-9a-f]{6}$"]


def functions(count: int = FUNCTIONS, seed: int = 0) -> list[dict[str, Any]]:
    """Functions as clients send them."""
    chance = random.Random(seed)
    return [
        {
            "name": f"function_{number}",
            "description": "Calls something.",
            "parameters": _parameters(chance, number),
        }
        for number in range(count)
    ]


def _parameters(chance: random.Random, number: int) -> dict[str, Any]:
    if number % 20 == 0:  # no arguments at all, in several ways
        return chance.choice([{}, {"type": "object"}, {"type": "object", "properties": {}}]) | {
            "additionalProperties": False
        }
    if number % 20 == 1:  # many
        return _object(chance, 1, [f"argument_{index}" for index in range(60)])
    schema = _object(chance, chance.choice([1, 2, 3]), chance.sample(_NAMES, chance.randint(1, 6)))
    if number % 5 == 0:  # something that is referred to, perhaps by itself
        node = _object(chance, 1, chance.sample(_NAMES, 2))
        if chance.random() < 0.5:
            children = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}
            node["properties"]["children"] = children
        schema["$defs"] = {"node": node}
        schema["properties"]["node"] = {"$ref": "#/$defs/node"}
        schema["required"] = [*schema["required"], "node"]
    return schema


def _object(chance: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    properties = {name: _value(chance, depth) for name in names}
    needed = [name for name in names if chance.random() < 0.6]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _value(chance: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[Callable[[random.Random, int], dict[str, Any]]] = [_text, _number, _choice, _flag]
    if depth > 0:
        kinds += [_list, _union, _nested]
    made = chance.choice(kinds)(chance, depth)
    if chance.random() < 0.3:
        made["description"] = "What it is: größer, 東京."
    if chance.random() < 0.2:
        made["default"] = None
    return made


def _text(chance: random.Random, _: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    match chance.randrange(4):
        case 0:
            made["format"] = chance.choice(_FORMATS)
        case 1:
            made |= {"pattern": chance.choice(_PATTERNS), "maxLength": 20}
        case 2:
            made["minLength"] = chance.randint(0, 3)
            made["maxLength"] = chance.randint(4, 20)
        case _:
            made["maxLength"] = 30
    return made


def _number(chance: random.Random, _: int) -> dict[str, Any]:
    low = chance.randint(-1000, 1000)
    made: dict[str, Any] = {"type": chance.choice(["integer", "number"])}
    if chance.random() < 0.7:
        made |= {
            "minimum": low,
            chance.choice(["maximum", "exclusiveMaximum"]): low + chance.randint(1, 5000),
        }
    elif made["type"] == "integer":
        made["multipleOf"] = chance.choice([2, 5, 10])
    return made


def _choice(chance: random.Random, _: int) -> dict[str, Any]:
    match chance.randrange(3):
        case 0:
            return {"type": "string", "enum": chance.sample(_WORDS, chance.randint(1, 6))}
        case 1:
            return {"enum": chance.sample([1, 2.5, "x", None, True, "größer", [1], {"a": 1}], 3)}
        case _:
            return {"const": chance.choice(_WORDS)}


def _flag(chance: random.Random, _: int) -> dict[str, Any]:
    return {"type": chance.choice(["boolean", ["boolean", "null"], "null"])}


def _list(chance: random.Random, depth: int) -> dict[str, Any]:
    if chance.random() < 0.2:
        items = [_value(chance, depth - 1) for _ in range(2)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": 2}
    most = chance.randint(1, 3)
    return {"type": "array", "items": _value(chance, depth - 1), "minItems": 1, "maxItems": most}


def _union(chance: random.Random, depth: int) -> dict[str, Any]:
    match chance.randrange(3):
        case 0:
            return {"anyOf": [_value(chance, depth - 1), {"type": "null"}]}
        case 1:
            return {"type": ["string", "integer"], "maxLength": 10}
        case _:
            ways = [_object(chance, 0, [f"{name}_{n}"]) for n, name in enumerate(chance.sample(_NAMES, 2))]
            return {"anyOf": ways}


def _nested(chance: random.Random, depth: int) -> dict[str, Any]:
    return _object(chance, depth - 1, chance.sample(_NAMES, chance.randint(1, 3)))


def fault(function: dict[str, Any], name: str, arguments: str) -> str:
    """Why the call is not valid; empty if it is."""
    if name != function["name"]:
        return f"it calls {name}"
    try:
        jsonschema.validate(json.loads(arguments), {"type": "object", **function["parameters"]})
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{str(error).splitlines()[0]}: {arguments[:300]}"
    return ""


class Drawing:
    """Calls made of tokens that are drawn from those that are allowed."""

    def __init__(self, tokenizer_json: str, vocab_size: int, end: int) -> None:
        self._tokenizer = make_tokenizer(tokenizer_json, vocab_size, [end])
        self._vocab_size = vocab_size
        self._dialect = dialect_for("")
        close = ['"', '"}', '"]', "}", "]", ",", '",', ":", "0", "@"]
        self._liked = {ids[0] for text in close if len(ids := self._tokenizer.tokenize_str(text)) == 1}

    def call(self, function: dict[str, Any], seed: int) -> str:
        """What is wrong with one call of the function; empty: nothing."""
        chance = random.Random(seed)
        form = required(self._dialect, [Function(function["name"], function["parameters"])], False, "no")
        structure = Structure("composed", f'{{"form":{written(form)}}}', "tools")
        try_out(self._tokenizer, structure)
        matcher = make_matcher(self._tokenizer, structure)
        output: list[int] = []
        ends = set(self._tokenizer.eos_tokens)
        while len(output) < MAX_TOKENS:
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits[: self._vocab_size])
            if set(allowed.tolist()) <= ends:
                break
            liked = self._liked.intersection(allowed.tolist())
            few = sorted(liked) if liked and chance.random() < 0.3 + len(output) / MAX_TOKENS else allowed
            token = int(few[chance.randrange(len(few))])
            matcher.consume_token(token)
            output.append(token)
        else:
            return f"it did not end: {self._tokenizer.decode_str(output)[-200:]}"
        reader = self._dialect.reader([json.dumps({"type": "function", "function": function})])
        parts = [*reader.feed(self._tokenizer.decode_str(output)), *reader.end()]
        names = [part.name for part in parts if isinstance(part, CallBegins)]
        arguments = "".join(part.text for part in parts if isinstance(part, CallArguments))
        return fault(function, *names, arguments) if len(names) == 1 else f"it has {len(names)} calls"


def asked(endpoint: str, function: dict[str, Any], seed: int, temperature: float) -> str:
    """What is wrong with a model's call of the function; empty: nothing."""
    import openai

    client = openai.OpenAI(base_url=endpoint, api_key="none", timeout=600)
    try:
        answer = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "Call the function with whatever you like."}],
            tools=[{"type": "function", "function": function}],  # type: ignore[list-item]
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=temperature,
            seed=seed,
            max_tokens=MAX_TOKENS,
        )
    except openai.APIError as error:
        return f"refused: {error}"[:300]
    choice = answer.choices[0]
    calls = choice.message.tool_calls or []
    if len(calls) != 1 or calls[0].type != "function":
        return f"{choice.finish_reason}: {len(calls)} calls: {choice.message.content}"[:300]
    return fault(function, calls[0].function.name, calls[0].function.arguments)


def _faults(arguments: argparse.Namespace, made: list[dict[str, Any]]) -> Iterator[str]:
    if arguments.endpoint:
        with ThreadPoolExecutor(arguments.at_a_time) as threads:
            yield from threads.map(
                lambda one: asked(arguments.endpoint, made[one], one, arguments.temperature), range(len(made))
            )
    else:
        folder = Path(arguments.drawn)
        config = json.loads((folder / "config.json").read_text())
        drawing = Drawing(
            (folder / "tokenizer.json").read_text(), config["vocab_size"], config["eos_token_id"]
        )
        for number, function in enumerate(made):
            yield drawing.call(function, number)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--endpoint", help="http://HOST:PORT/v1 of a running cluster")
    way.add_argument("--drawn", help="folder of a model, whose tokenizer is used")
    parser.add_argument("--functions", type=int, default=FUNCTIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.5)
    parser.add_argument("--at-a-time", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    begin = time.monotonic()
    made = functions(arguments.functions, arguments.seed)
    faults = [found for found in _faults(arguments, made) if found]
    for found in faults:
        print(found)
    result = {
        "functions": len(made),
        "valid": len(made) - len(faults),
        "faults": dict(Counter(found.split(":")[0] for found in faults)),
        "schema_bytes": sum(len(json.dumps(one)) for one in made),
        "seconds": round(time.monotonic() - begin, 1),
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

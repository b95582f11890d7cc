"""JSON schemas of request bodies: what `parse_chat` and `parse_completion` take."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from tidepipe_common.openai.bodies import ChatBody, CompletionBody
from tidepipe_common.openai.fields import IGNORED, REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS
from tidepipe_common.openai.validation import Refusal, StrictModel

_IGNORED = {"description": "Accepted and ignored: it changes nothing of the answer."}


class _Untitled(GenerateJsonSchema):
    """Without titles, which would only say the names again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def request_schemas() -> dict[str, dict[str, Any]]:
    """ChatBody, CompletionBody and what they consist of, by name, as OpenAPI's components."""
    schemas = schemas_of([ChatBody, CompletionBody])
    _complete(schemas["ChatBody"], REFUSED_IN_CHAT, IGNORED)
    _complete(schemas["CompletionBody"], REFUSED_IN_COMPLETIONS, IGNORED)
    return schemas


def schemas_of(models: Sequence[type[StrictModel]]) -> dict[str, dict[str, Any]]:
    """Schemas of the models and of those that they consist of, by name."""
    _, schema = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    # Types that a described field hides are left over.
    text = json.dumps(schema)
    wanted = {model.__name__ for model in models}
    return {
        name: {key: value for key, value in definition.items() if key != "title"}
        for name, definition in definitions.items()
        if name in wanted or f'schemas/{name}"' in text
    }


def _complete(schema: dict[str, Any], refused: Mapping[str, Refusal], ignored: Collection[str]) -> None:
    """Add the fields that the model does not know: those that `validate` looks at before."""
    for name, refusal in refused.items():
        schema["properties"][name] = {"enum": [None, *refusal.harmless], "description": refusal.why}
    for name in sorted(ignored):
        schema["properties"][name] = _IGNORED

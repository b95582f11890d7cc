"""JSON schemas of what the API takes and gives, as OpenAPI's components, from the types of the bodies."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from tidepipe_common.messages import body as message_body
from tidepipe_common.messages.body import CountBody, MessagesBody
from tidepipe_common.openai.bodies import ChatBody, CompletionBody
from tidepipe_common.openai.embeddings import (
    IGNORED_IN_EMBEDDINGS,
    REFUSED_IN_EMBEDDINGS,
    REFUSED_IN_RERANK,
    EmbeddingsBody,
    RerankBody,
)
from tidepipe_common.openai.fields import (
    IGNORED,
    IGNORED_IN_COMPLETIONS,
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
)
from tidepipe_common.openai.tokens import REFUSED_IN_TOKENIZE, TokenizeBody
from tidepipe_common.openai.validation import Refusal
from tidepipe_common.responses import body
from tidepipe_common.responses.body import ResponsesBody

_OTHERS: dict[str, tuple[Mapping[str, Refusal], Collection[str]]] = {
    ChatBody.__name__: (REFUSED_IN_CHAT, IGNORED),
    CompletionBody.__name__: (REFUSED_IN_COMPLETIONS, IGNORED_IN_COMPLETIONS),
    ResponsesBody.__name__: (body.REFUSED, body.IGNORED),
    MessagesBody.__name__: (message_body.REFUSED, message_body.IGNORED),
    CountBody.__name__: (message_body.REFUSED, message_body.IGNORED),
    TokenizeBody.__name__: (REFUSED_IN_TOKENIZE, ()),
    EmbeddingsBody.__name__: (REFUSED_IN_EMBEDDINGS, IGNORED_IN_EMBEDDINGS),
    RerankBody.__name__: (REFUSED_IN_RERANK, IGNORED_IN_EMBEDDINGS),
}
_IGNORED = {"description": "Accepted and ignored: it changes nothing of the answer."}


class _Untitled(GenerateJsonSchema):
    """Without titles, which would only say the names again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schemas_of(types: Collection[type[Any]]) -> dict[str, dict[str, Any]]:
    """Schemas of the types and of those that they consist of, by name."""
    _, schema = TypeAdapter.json_schemas(
        [(kind.__name__, "validation", TypeAdapter(kind)) for kind in types],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    # Types that a described field hides are left over.
    text, wanted = json.dumps(schema), {kind.__name__ for kind in types}
    found = {
        name: {key: value for key, value in definition.items() if key != "title"}
        for name, definition in definitions.items()
        if name in wanted or f'schemas/{name}"' in text
    }
    for name, (refused, ignored) in _OTHERS.items():
        if name in found:
            _complete(found[name], refused, ignored)
    return found


def _complete(schema: dict[str, Any], refused: Mapping[str, Refusal], ignored: Collection[str]) -> None:
    """Add the fields that the model does not know: those that `validate` looks at before."""
    for name, refusal in refused.items():
        schema["properties"][name] = {"enum": [None, *refusal.harmless], "description": refusal.why}
    for name in sorted(ignored):
        schema["properties"][name] = _IGNORED

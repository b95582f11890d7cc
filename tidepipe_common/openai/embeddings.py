"""Bodies of /v1/embeddings, as OpenAI has it, and of /v1/rerank, as vLLM, Jina and Cohere do."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, Field, WithJsonSchema
from typing_extensions import TypedDict

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_INPUTS
from tidepipe_common.openai.answers import closed
from tidepipe_common.openai.bodies import WHOLE_ANSWER_GAP_S, CacheSalt, ModelName
from tidepipe_common.openai.fields import UserName, one_or_several, texts_or_ids
from tidepipe_common.openai.numbers import MAX_INT
from tidepipe_common.openai.validation import Refusal, StrictModel, checked_text, validate
from tidepipe_common.types.request import Answer, GenerationRequest, of_prompt
from tidepipe_common.types.sampling import Pooling, SamplingParams

REFUSED_IN_EMBEDDINGS = {
    "messages": Refusal("embeddings of chats are not supported; send their text as input"),
    "truncate_prompt_tokens": Refusal("not supported; send fewer tokens"),
    "add_special_tokens": Refusal("only true is supported; send token ids for full control", (True,)),
    "priority": Refusal("priorities are not supported here", (0,)),
}
REFUSED_IN_RERANK = {
    "truncate_prompt_tokens": Refusal("not supported; send fewer tokens"),
    "max_tokens_per_doc": Refusal("not supported; send shorter documents"),
    "instruction": Refusal("not supported; write it into the query"),
}
IGNORED_IN_EMBEDDINGS = frozenset({"metadata", "store", "service_tier"})

NUMBER_BYTES = 20
"""Of a number of a vector, in JSON."""
_SAMPLING = SamplingParams(temperature=0.0, max_tokens=0, pooling=Pooling.LAST)
"""Of all of them; which pooling it is, the model's router knows."""


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    return texts_or_ids(value, MAX_INPUTS)


def _document(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"text"}:
        value = value["text"]
    if isinstance(value, dict):
        raise ValueError('must be a string or {"text": ...}, got an object with other fields')
    return checked_text(value)


_TEXT_OF = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 1}},
    "required": ["text"],
    "additionalProperties": False,
}
Inputs = Annotated[tuple[str | tuple[int, ...], ...], BeforeValidator(_inputs), one_or_several(MAX_INPUTS)]
Document = Annotated[
    str,
    BeforeValidator(_document),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _TEXT_OF]}),
]


class EmbeddingsBody(StrictModel):
    """Body of /v1/embeddings. normalize: to length 1, unless it says false."""

    model: ModelName | None = None
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    normalize: bool | None = None
    user: UserName | None = None
    cache_salt: CacheSalt | None = None


class RerankBody(StrictModel):
    """Body of /v1/rerank."""

    model: ModelName | None = None
    query: Document
    documents: Annotated[list[Document], Field(max_length=MAX_INPUTS - 1, json_schema_extra={"minItems": 1})]
    top_n: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    return_documents: bool | None = None
    user: UserName | None = None


@closed
class InputUsage(TypedDict):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


@closed
class Embedding(TypedDict):
    """Of one input. embedding: numbers, or floats of 32 bits in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


@closed
class EmbeddingList(TypedDict):
    """Of all of them, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: InputUsage


@closed
class RankedText(TypedDict):
    """A document as it was sent."""

    text: str


@closed
class Ranked(TypedDict):
    """A document's place. relevance_score: cosine of its vector's and the query's angle."""

    index: int
    relevance_score: float
    document: NotRequired[RankedText]


@closed
class Ranking(TypedDict):
    """Documents, the most relevant first."""

    id: str
    model: str
    usage: InputUsage
    results: list[Ranked]


def in_embeddings(error: InvalidRequestError) -> InvalidRequestError:
    """What is wrong with a prompt, as it is called there."""
    return _placed(error, "input" if error.number is None else f"input.{error.number}")


def in_rerank(error: InvalidRequestError) -> InvalidRequestError:
    """Likewise; the query is the first of the prompts."""
    number = error.number or 0
    return _placed(error, f"documents.{number - 1}" if number else "query")


def _placed(error: InvalidRequestError, where: str) -> InvalidRequestError:
    if error.param != "prompt":
        return error
    text = str(error) if error.number is None else str(error).removeprefix(of_prompt(error.number))
    return type(error)(f"{where}: {text}", where.partition(".")[0])


def parse_embeddings(body: object, request_id: str) -> tuple[EmbeddingsBody, GenerationRequest]:
    """From the decoded JSON of a body. Raises InvalidRequestError."""
    asked = validate(EmbeddingsBody, body, REFUSED_IN_EMBEDDINGS, IGNORED_IN_EMBEDDINGS)
    request = _request(request_id, asked.input, asked.model, asked.user, asked.cache_salt)
    return asked, request


def parse_rerank(body: object, request_id: str) -> tuple[RerankBody, GenerationRequest]:
    """From the decoded JSON of a body: the query is the first of the prompts. Raises InvalidRequestError."""
    asked = validate(RerankBody, body, REFUSED_IN_RERANK, IGNORED_IN_EMBEDDINGS)
    if not asked.documents:
        raise InvalidRequestError("documents must not be empty", "documents")
    return asked, _request(request_id, (asked.query, *asked.documents), asked.model, asked.user, None)


def _request(
    request_id: str,
    inputs: Sequence[str | tuple[int, ...]],
    model: str | None,
    user: str | None,
    cache_salt: str | None,
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt=inputs[0],
        more_prompts=tuple(inputs[1:]),
        sampling=_SAMPLING,
        model=model or None,
        skip_text=True,
        piece_gap_s=WHOLE_ANSWER_GAP_S,
        client=user or "",
        cache_salt=cache_salt or "",
    )


def vector_bytes(answers: Sequence[Answer]) -> int:
    """About how much text their vectors are."""
    return NUMBER_BYTES * (sum(len(answer.vector) for answer in answers) // 4)


def embeddings_body(
    asked: EmbeddingsBody, model: str, answers: Sequence[Answer], prompt_tokens: int
) -> EmbeddingList:
    """The vectors; InvalidRequestError if more dimensions are asked for than there are."""
    data: list[Embedding] = []
    for index, answer in enumerate(answers):
        vector = array("f", answer.vector)
        if asked.dimensions is not None:
            if asked.dimensions > len(vector):
                raise InvalidRequestError(
                    f"dimensions must be at most {len(vector)}, as many as the model's vectors have, "
                    f"got {asked.dimensions}",
                    "dimensions",
                )
            vector = vector[: asked.dimensions]
        if asked.normalize is not False:
            vector = array("f", _of_length_one(vector))
        shown: list[float] | str = vector.tolist()
        if asked.encoding_format == "base64":
            shown = base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    return {"object": "list", "data": data, "model": model, "usage": _usage(prompt_tokens)}


def rerank_body(
    asked: RerankBody, request_id: str, model: str, answers: Sequence[Answer], prompt_tokens: int
) -> Ranking:
    """The documents, the most similar to the query first."""
    query, *documents = [_of_length_one(array("f", answer.vector)) for answer in answers]
    scores = [sum(a * b for a, b in zip(query, one, strict=True)) for one in documents]
    results: list[Ranked] = []
    for index in sorted(range(len(scores)), key=lambda place: -scores[place])[: asked.top_n or len(scores)]:
        ranked: Ranked = {"index": index, "relevance_score": scores[index]}
        if asked.return_documents is not False:
            ranked["document"] = {"text": asked.documents[index]}
        results.append(ranked)
    return {
        "id": f"rerank-{request_id}",
        "model": model,
        "usage": _usage(prompt_tokens),
        "results": results,
    }


def _of_length_one(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def _usage(prompt_tokens: int) -> InputUsage:
    return {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}

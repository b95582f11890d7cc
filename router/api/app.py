"""The HTTP application: all routes, of http/, openapi/ and dashboard/, which do not know each other's."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.api.dashboard.feed import PageFeed
from router.api.dashboard.routes import page_routes
from router.api.http.answers import AnswerBodies
from router.api.http.batches import BatchEndpoints
from router.api.http.embeddings import VectorForm, read_embeddings, read_rerank
from router.api.http.endpoint import CompletionEndpoint
from router.api.http.failures import failure, http_failure
from router.api.http.files import FileEndpoints
from router.api.http.forms import CompletionForm
from router.api.http.messages import MessagesForm, MessageTokensEndpoint
from router.api.http.responses import ResponseEndpoints
from router.api.http.tokens import TokenEndpoints
from router.api.openapi.document import openapi_document
from router.batches.jobs import BatchJobs
from router.instances.served_model import ModelFacts
from router.models.model import ServedModel
from router.models.models import ServedModels, unknown_model
from router.requests.keyed import KeyedRequests
from router.requests.table import RequestTable
from router.responses.runs import ResponseRuns
from tidepipe_common.errors import NotFoundError
from tidepipe_common.openai.answers import Model, ModelList
from tidepipe_common.openai.bodies import parse_chat, parse_completion
from tidepipe_common.openai.embeddings import in_embeddings, in_rerank
from tidepipe_common.telemetry.listener import metrics_route
from tidepipe_common.telemetry.telemetry import Telemetry
from tidepipe_common.version import tidepipe_version


def make_app(
    table: RequestTable,
    models: ServedModels,
    bodies: AnswerBodies,
    keyed: KeyedRequests,
    jobs: BatchJobs | None,
    created: int,
    telemetry: Telemetry,
    feed: PageFeed,
    runs: ResponseRuns | None = None,
) -> Starlette:
    """jobs, runs: None for a router that keeps nothing.

    created: Unix time, seconds, shown with the models.
    """

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        if not models.ready:
            lacks_text = models.main.loaded is None
            missing = ["the tokenizer", "an instance"] if lacks_text else ["an instance"]
            return JSONResponse({"status": "not ready", "missing": missing}, 503)
        return JSONResponse({"status": "ready"})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": tidepipe_version()})

    async def list_models(request: Request) -> Response:
        data = [_model(*one, created) for one in models.entries()]
        return JSONResponse(ModelList(object="list", data=data))

    async def one_model(request: Request) -> Response:
        wanted = request.path_params["name"]
        for name, model, facts in models.entries():
            if name == wanted:
                return JSONResponse(_model(name, model, facts, created))
        return failure(unknown_model(wanted, models.names))

    description = JSONResponse(openapi_document(stored=jobs is not None))

    async def describe(request: Request) -> Response:
        return description

    chat = CompletionEndpoint(CompletionForm(parse_chat, bodies), table, keyed)
    completion = CompletionEndpoint(CompletionForm(parse_completion, bodies), table, keyed)
    message = CompletionEndpoint(MessagesForm(bodies), table, keyed)
    count = MessageTokensEndpoint(table.admission)

    embedding = CompletionEndpoint(VectorForm(read_embeddings, in_embeddings), table, keyed)
    rerank = CompletionEndpoint(VectorForm(read_rerank, in_rerank), table, keyed)

    app = Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
            Route("/version", version, methods=["GET"]),
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", one_model, methods=["GET"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
            Route("/v1/messages", message, methods=["POST"]),
            Route("/v1/messages/count_tokens", count.answer, methods=["POST"]),
            *ResponseEndpoints(bodies, table, keyed, runs).routes(),
            Route("/openapi.json", describe, methods=["GET"]),
            Route("/v1/embeddings", embedding, methods=["POST"]),
            *[Route(path, rerank, methods=["POST"]) for path in ("/rerank", "/v1/rerank", "/v2/rerank")],
            *TokenEndpoints(table.admission).routes(),
            *_stored(jobs),
            metrics_route(telemetry),
            *page_routes(feed),
        ],
        exception_handlers={HTTPException: http_failure},
    )
    # A path is what it is: the redirection of others would name a host that the client made up.
    app.router.redirect_slashes = False
    return app


def _stored(jobs: BatchJobs | None) -> list[Route]:
    if jobs is not None:
        return [*FileEndpoints(jobs.database).routes(), *BatchEndpoints(jobs).routes()]

    async def without(request: Request) -> Response:
        text = "this router keeps no files and batches; start it with --data-dir"
        return failure(NotFoundError(text))

    methods = ["GET", "POST", "DELETE"]
    return [Route(f"/v1/{what}{{rest:path}}", without, methods=methods) for what in ("files", "batches")]


def _model(name: str, model: ServedModel, facts: ModelFacts, created: int) -> Model:
    entry: Model = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tidepipe",
        "root": model.name,
        "max_model_len": facts.context_length,
        "vocab_size": facts.vocab_size,
        "slo": {"ttft_ms": 1000 * model.target.ttft_s, "tpot_ms": 1000 * model.target.tpot_s},
    }
    if model.adapter(name):
        entry["parent"] = model.name
    return entry

"""The description names what the gateway has, no more and no less."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock
from urllib.parse import urlencode

import pytest
from pydantic import TypeAdapter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route

from router.api.app import make_app
from router.api.http.endpoint import TTFT, with_targets
from router.api.http.paging import Page, batch_list, file_list, page_of
from router.api.openapi.document import openapi_document
from router.batches.records import BatchRecord, FileRecord
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.openai.answers import BatchList, FileList
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.sampling import SamplingParams


@pytest.mark.parametrize("jobs", [Mock(), None])
def test_every_route_is_described(jobs: Any) -> None:
    app = make_app(Mock(), Mock(), Mock(), Mock(), jobs, 0, Mock(), Mock(), jobs)
    routes = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in app.routes
        if isinstance(route, Route) and not route.path.endswith("{rest:path}")
        for method in (route.methods or ()) - {"HEAD"}
    }
    paths = openapi_document(stored=jobs is not None)["paths"]
    assert routes == {(path, method) for path, methods in paths.items() for method in methods}


def test_files_and_batches_are_of_the_types_that_are_described() -> None:
    file = FileRecord("f", 1, 2, "in.jsonl", "batch").body()
    record = BatchRecord("b", 1, "/v1/completions", "f", "24h", 1, 2, metadata={"a": "b"})
    record = record.entered("failed", 5, errors=[{"code": "c", "message": "m", "line": None, "param": None}])
    TypeAdapter(FileList).validate_python(file_list([file] * 3, 2), strict=True)
    batches = batch_list([record.body()], 2)
    TypeAdapter(BatchList).validate_python(batches, strict=True)
    assert (batches["first_id"], batches["last_id"], batches["has_more"]) == ("b", "b", False)
    assert batches["data"][0]["failed_at"] == 5


def test_limits_are_refused_in_words() -> None:
    # Python would not even read the longest number; it reads the others, which nobody means.
    for limit in ("9" * 5000, "0", "101", "", "1_0", " 10", "+1", "-1", "1.0", "\u0661", "\u00b2"):
        with pytest.raises(InvalidRequestError, match="limit must be a number from 1 to 100"):
            page(limit=limit)
    for number in ("1_0", "nan", "inf", "1e400", "0x10", "", "-5", "5e-324"):  # the last is no second at all
        with pytest.raises(InvalidRequestError, match=TTFT):
            with_targets(GenerationRequest("r", "hello", SamplingParams()), Headers({TTFT: number}))


def test_a_page_is_what_its_query_string_says() -> None:
    assert page() == Page(20, None, True)
    assert page(limit="7", after="x", order="asc") == Page(7, "x", False)
    with pytest.raises(InvalidRequestError, match="order must be"):
        page(order="sideways")
    for name in ("limit", "after", "order"):
        with pytest.raises(InvalidRequestError, match=f"{name} stands 2 times"):
            page_of(asked(f"{name}=1&{name}=1"), most=100, default=20)


def asked(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def page(**query: str) -> Page:
    return page_of(asked(urlencode(query)), most=100, default=20)

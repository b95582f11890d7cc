"""The description names what the gateway has, no more and no less."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from starlette.datastructures import Headers
from starlette.routing import Route

from common.errors import InvalidRequestError
from common.request import GenerationRequest
from common.sampling import SamplingParams
from router.description.document import openapi_document
from router.gateway.app import make_app
from router.gateway.headers import TTFT, with_targets
from router.gateway.paging import page_limit


@pytest.mark.parametrize("jobs", [Mock(), None])
def test_every_route_is_described(jobs: Any) -> None:
    app = make_app(Mock(), Mock(), Mock(), Mock(), Mock(), jobs, 0, Mock(), Mock())
    routes = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in app.routes
        if isinstance(route, Route) and not route.path.endswith("{rest:path}")
        for method in (route.methods or ()) - {"HEAD"}
    }
    paths = openapi_document(stored=jobs is not None)["paths"]
    assert routes == {(path, method) for path, methods in paths.items() for method in methods}


def test_limits_are_refused_in_words() -> None:
    # Python would not even read the number.
    with pytest.raises(InvalidRequestError, match="limit must be a number from 1 to 100"):
        page_limit({"limit": "9" * 5000}, most=100, default=20)
    headers = Headers({TTFT: "5e-324"})  # no seconds at all, once divided by 1000
    with pytest.raises(InvalidRequestError, match=TTFT):
        with_targets(GenerationRequest("r", "hello", SamplingParams()), headers)

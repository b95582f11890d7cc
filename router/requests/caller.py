"""Who asks: whose request it is, and by which name a client's recent answers are found."""

from __future__ import annotations

from dataclasses import replace

from tidepipe_common.security.api_key import split_key
from tidepipe_common.security.caller import current
from tidepipe_common.security.key_access import bearer
from tidepipe_common.types.request import GenerationRequest


def known_by_key(request: GenerationRequest, authorization: str | None) -> GenerationRequest:
    """The request with its owner, and with the public id of its API key in front of the user that it names,
    so that users of two keys are never taken for one. The key's secret is not part of it."""
    request = replace(request, owner=current().owner)
    parts = split_key(bearer(authorization) or "")
    if parts is None:
        return request
    return replace(request, client=f"{parts[0]}/{request.client}")

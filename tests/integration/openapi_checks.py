"""Hooks of schemathesis for tests/integration/test_openapi.py."""

from __future__ import annotations

import re

import schemathesis
from schemathesis import Case, CheckContext, Response
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi.checks import negative_data_rejection

WHAT_NO_SCHEMA_SAYS = re.compile(
    "is required$"  # a message without content needs tool_calls
    "|contradict|top_logprobs needs|only allowed with|must not exceed|only an assistant|echo with logprobs"
    "|vocabulary|context|are not JSON|is not usable|the prompt is empty|too large to be"
    "|structured_outputs.* must have one of"
    "|stop strings would cut"
    "|there is no (response|item)|needs store: true|is there twice|^input must not be empty"
    "|belongs to another request|cannot be cancelled"
    # JSON Schema takes 8.0 for an integer; here it is none.
    r"|must be an integer, got the number -?[0-9]+\.0$"
    "|must be (a string or )?a list of token ids, .*got a list with"
    # 0 is for those who want nothing but the prompt's log-probabilities.
    "|max_tokens must be at least 1, got 0"
    # What a block of Anthropic's form may be, and where.
    "|(system|messages|tools)[.0-9a-z_]* (has the type|has no place|has the unknown field|must be|may have)"
    "|has no place in what the|thinking.budget_tokens is required"
    "|answers to all prompts together|send either prompt or messages|the template does not accept"
)
"""Why a body that is as described may be refused all the same; the description says so."""


@schemathesis.check
def what_is_described_is_taken(ctx: CheckContext, response: Response, case: Case) -> None:
    """A request as described is refused for no other reason than those."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    reason = response.json()["error"]["message"]
    assert WHAT_NO_SCHEMA_SAYS.search(reason), reason


@schemathesis.check
def what_is_not_described_is_refused(ctx: CheckContext, response: Response, case: Case) -> None:
    """As schemathesis has it, but headers and query parameters that nobody knows are nobody's business."""
    try:
        negative_data_rejection(ctx, response, case)
    except Failure as failure:
        if not re.search("in (header|query|path).* - object with unexpected properties", failure.message):
            raise

"""Exit codes of `tidepipe`, and what each says."""

from __future__ import annotations

from tidepipe_common.errors import (
    ConfigError,
    IncompatibleError,
    InvalidRequestError,
    ModelError,
    NotFoundError,
    PermissionDeniedError,
    TidePipeError,
    UnauthenticatedError,
)

SUCCESS = 0
SOME_FAILED = 1
BAD_USAGE = 2
CLUSTER_FAILURE = 3
INTERRUPTED = 130

_USAGE_ERRORS = (
    *(ConfigError, IncompatibleError, InvalidRequestError, ModelError, NotFoundError),
    *(PermissionDeniedError, UnauthenticatedError),
)


def exit_code(error: TidePipeError) -> int:
    """2 if the user can mend it by asking differently, 3 if a service is at fault."""
    return BAD_USAGE if isinstance(error, _USAGE_ERRORS) else CLUSTER_FAILURE

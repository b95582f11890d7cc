"""Errors that TidePipe shows to people.

Each says what is wrong and what to do. The edge maps them to a gRPC status, the gateway to an HTTP
code, the command line to an exit code; see `tidepipe_common.rpc.status`.
"""


class TidePipeError(Exception):
    """Base of all errors with a message meant for users."""


class InvalidRequestError(TidePipeError):
    """The request can never succeed as it is (gRPC INVALID_ARGUMENT, HTTP 400).

    param: the offending field, in the caller's words, or None. number: of several prompts the one at fault.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.number: int | None = None


class KeyReusedError(InvalidRequestError):
    """An idempotency key came back with another request (INVALID_ARGUMENT, 422).

    Not 409: clients of the OpenAI API try that again.
    """


class PreviousResponseError(InvalidRequestError):
    """The response that a new one is to go on from is not there, or has no answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "previous_response_id")


class ContextLengthError(InvalidRequestError):
    """Prompt and answer together do not fit the model's context."""


class NotFoundError(TidePipeError):
    """An unknown model, request or instance (NOT_FOUND, 404)."""


class ModelNotFoundError(NotFoundError):
    """A model that is not served here."""


class OverloadedError(TidePipeError):
    """A bounded queue is full (RESOURCE_EXHAUSTED, 429).

    retry_after_ms: when it makes sense to come again.
    """

    def __init__(self, message: str, retry_after_ms: int = 1000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class UnauthenticatedError(TidePipeError):
    """Who calls did not say who they are, or could not prove it (UNAUTHENTICATED, 401)."""


class PermissionDeniedError(TidePipeError):
    """Who calls is known, and may not do this (PERMISSION_DENIED, 403)."""


class UnavailableError(TidePipeError):
    """A service that is needed does not answer (UNAVAILABLE, 503). Trying again may help."""


class StorageError(TidePipeError):
    """Something could not be stored durably, and nothing of it was (RESOURCE_EXHAUSTED, 507)."""


class QuotaError(StorageError):
    """What somebody may store is used up, and only they can free some of it (RESOURCE_EXHAUSTED, 413)."""


class StorageBrokenError(StorageError):
    """What was stored is damaged, or cannot be changed: waiting, or more room, does not help (500)."""


class IncompatibleError(TidePipeError):
    """Two processes do not fit: other model, other protocol version, older epoch (FAILED_PRECONDITION)."""


class ModelError(TidePipeError):
    """A model cannot be loaded: not found, corrupt, or of an unsupported architecture."""


class ConfigError(TidePipeError):
    """A setting is wrong, or settings contradict each other."""

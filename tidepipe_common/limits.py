"""What a request may carry, and how large a message may become: every limit in bytes, counts and characters.

Fields are checked where all requests pass, whatever door they came in by (`GenerationRequest.check`), and
counted at the door before they are turned into Python's objects, which are ten times larger. What goes on
between services is cut by the size of the message itself, so that no message is larger than what is taken:
at most PIECE_BYTES, or one sequence, which these limits keep far below MESSAGE_BYTES.
"""

from __future__ import annotations

from tidepipe_common.errors import InvalidRequestError

MESSAGE_BYTES = 16 * 1024 * 1024
"""A gRPC message that services and clients send, and that channels take back."""
PIECE_BYTES = 2 * 1024 * 1024
"""A message that can be cut is not made larger than this."""

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""A request as it comes in: an HTTP body, a line of a batch, an InferenceRequest."""
SPEC_BYTES = MAX_REQUEST_BYTES
"""One sequence when it is handed over: prompt, output so far, and what it carries besides. Tokens
of a large vocabulary have three bytes each."""
CALL_BYTES = MAX_REQUEST_BYTES + 512 * 1024
"""A gRPC message that a server takes: none that is meant seriously is larger."""
MAX_CALL_FIELDS = 64 * 1024
"""Fields of a client's gRPC message, at all levels; a million token ids are one. No request needs more than
MAX_TURNS turns have."""
MAX_SERVICE_FIELDS = 1024 * 1024
"""Likewise of a service's: a router tells an instance where it stands with each of its sequences."""
MAX_HANDED_OVER = PIECE_BYTES // 64
"""Sequences in one message: none is smaller than that."""
MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""Large messages that come in, or wait to be read, together."""
MAX_UNTAKEN_BYTES = 128 * 1024 * 1024
"""Answers over HTTP that have been made, and that their clients do not take, together."""

MAX_PROMPT_BYTES = MAX_REQUEST_BYTES
"""Text of a prompt, or all that a chat's template gets, in UTF-8."""
MAX_PROMPT_TOKENS = 1024 * 1024
"""Token ids of a prompt; the model's context is checked besides."""
MAX_TURNS = 4096
"""Turns of a chat."""
TURN_CHARACTERS = 64
"""What a turn counts besides its texts: a template writes something for each, and takes time for it."""
MAX_ROLE_CHARACTERS = 64
MAX_SPEAKER_CHARACTERS = 256
"""Name of a speaker, id of a call that a tool answers."""
MAX_TOOLS = 128
MAX_TOOL_NAME_CHARACTERS = 256
MAX_TOOLS_BYTES = 512 * 1024
"""Of all tools together, and of all calls of tools: 4 KiB for each of MAX_TOOLS. Templates read the JSON."""

MAX_TEMPLATE_BYTES = 8 * 1024
MAX_TEMPLATE_DEPTH = 8
"""Of chat_template_kwargs: a template's own arguments are switches, numbers and short texts."""
MAX_THOUGHT_MARKS = 16
"""Tokens with which a thought begins, or ends."""

MAX_ANSWERS = 16
"""To one prompt."""
MAX_PROMPTS = 256
"""Prompts of one completion, and its answers to all of them."""
MAX_INPUTS = 2048
"""Texts of which one request wants vectors."""
MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 512 * 1024
"""Log-probabilities of the prompts of one request: of each token one, and those of the most likely ones.
Eight bytes each between services, and some fifty in JSON."""
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_STRUCTURE_BYTES = 64 * 1024
MAX_SAMPLING_BYTES = 96 * 1024
"""What one sequence carries besides its tokens: its SamplingParams as they go from router to controller and
from there to the stage that samples. The limits of their fields together keep below it."""

MAX_PRIORITY = 1000
"""Of a request, as it is and negative."""
MAX_NAME_CHARACTERS = 1024
"""Name of a model, which may be a path."""
MAX_USER_CHARACTERS = 256
"""Of a user's name; the rest is not looked at."""
MAX_CACHE_SALT_BYTES = 256
"""What keeps a request's computed beginning apart from others': 32 random bytes are enough."""
MAX_REQUEST_ID_CHARACTERS = 256
MAX_SEQUENCE_ID_CHARACTERS = MAX_REQUEST_ID_CHARACTERS + 768
"""A sequence's id says whose it is, and where it is for which time."""
MAX_CANCELLED = 10_000
"""Requests that one call ends."""
MAX_CUSTOM_ID_CHARACTERS = 512
"""A line's name in a batch."""
MAX_METADATA = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_VALUE_CHARACTERS = 512
"""A batch's metadata, as in OpenAI's API."""

MAX_STORED_BYTES = 2**62
"""That any limit of stored files may name: SQLite's integers are signed, and sums of them must fit."""

MAX_ADDRESS_CHARACTERS = 256
"""Name or address of an instance or a router."""
MAX_DETAIL_CHARACTERS = 2000
"""Of an error's text on its way to the caller: it travels among the metadata, and may quote the caller."""


def check_count(name: str, count: int, most: int, what: str = "entries", *, param: str | None = None) -> None:
    """Raise InvalidRequestError if there are more than `most`."""
    if count > most:
        raise InvalidRequestError(f"{name} may have {most} {what}, got {count}", param or name)


def check_characters(name: str, text: str, most: int, param: str | None = None) -> None:
    """Raise InvalidRequestError if the text is longer than `most`."""
    if len(text) > most:
        raise InvalidRequestError(f"{name} may have {most} characters, got {len(text)}", param or name)


def check_bytes(name: str, size: int, most: int, param: str | None = None) -> None:
    """Raise InvalidRequestError if it takes more than `most` bytes."""
    if size > most:
        raise InvalidRequestError(f"{name} may have {most} bytes, got {size}", param or name)


def text_bytes(text: str) -> int:
    """Its size in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))

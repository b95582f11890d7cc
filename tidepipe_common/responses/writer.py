"""The writer of responses: an answer's parts become the events of a stream, and the body at its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Thought, Words
from tidepipe_common.errors import InvalidRequestError, OverloadedError, TidePipeError
from tidepipe_common.openai.answers import PositionEntry
from tidepipe_common.openai.failures import error_response
from tidepipe_common.openai.spoken import CallId
from tidepipe_common.responses.answers import (
    CustomCallItem,
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ResponseBody,
    ResponseError,
    ResponseUsage,
    Status,
)
from tidepipe_common.responses.body import ResponseAsk
from tidepipe_common.responses.items import prefix
from tidepipe_common.responses.names import OUTPUT, item_id
from tidepipe_common.responses.tools import CUSTOM_INPUT, ChatTools
from tidepipe_common.text.text import is_text
from tidepipe_common.types.request import Usage

Event = dict[str, Any]
CALLS = ("function_call", "custom_tool_call")


def head_of(ask: ResponseAsk, name: str, model: str, created: int, *, stored: bool) -> ResponseBody:
    """The body of a response of which nothing is known yet but what was asked. name: its id."""
    known = {
        "id": name,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "queued" if ask.background else "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "store": stored,
        "usage": None,
    }
    return cast(ResponseBody, known | ask.echo)


def usage_body(usage: Usage, reasoning_tokens: int = 0) -> ResponseUsage:
    """The `usage` object."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def failure_of(error: BaseException) -> ResponseError:
    """The `error` object of a response that failed."""
    _, body, _ = error_response(error)
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] = "server_error"
    if isinstance(error, OverloadedError):
        code = "rate_limit_exceeded"
    elif isinstance(error, InvalidRequestError):
        code = "invalid_prompt"
    return {"code": code, "message": body["error"]["message"]}


def completed(
    head: ResponseBody, output: list[OutputItem], usage: ResponseUsage, now: int, *, whole: bool
) -> ResponseBody:
    """The body of a response that has ended. whole: not cut by a limit of its length."""
    ended = {
        "output": output,
        "usage": usage,
        "status": "completed" if whole else "incomplete",
        "completed_at": now if whole else None,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
    }
    return cast(ResponseBody, {**head, **ended})


def stopped(
    head: ResponseBody, status: Status, error: ResponseError | None, output: Sequence[OutputItem] = ()
) -> ResponseBody:
    """The body of a response that ended otherwise, with what there is of its output."""
    return {**head, "status": status, "error": error, "output": list(output)}


@dataclass(slots=True)
class _Open:
    """The item that is being said. text: all of it so far, in pieces."""

    item: OutputItem
    index: int
    text: list[str] = field(default_factory=list)
    logprobs: list[PositionEntry] = field(default_factory=list)


class ResponseWriter:
    """Makes the events of one response, in OpenAI's order. However parts are cut, the output is the same.

    Words that are only white space begin no message beside other items.
    """

    def __init__(self, head: ResponseBody, tools: ChatTools, call_id: CallId, *, quiet: bool = False) -> None:
        """quiet: log-probabilities come when a text is done, not in its deltas."""
        self.output: list[OutputItem] = []
        self._head = head
        self._tools = tools
        self._call_id = call_id
        self._quiet = quiet
        self._number = 0
        self._open: _Open | None = None
        self._space: list[str] = []
        self._space_logprobs: list[PositionEntry] = []

    def begin(self) -> list[Event]:
        """Before there is anything of the answer."""
        first: list[Status] = ["queued", "in_progress"] if self._head["background"] else ["in_progress"]
        said = [("created", first[0]), *((status, status) for status in first)]
        return [self._event(f"response.{of}", response={**self._head, "status": now}) for of, now in said]

    def say(self, part: Part, logprobs: Sequence[PositionEntry] = ()) -> list[Event]:
        """The next part. logprobs: of its tokens, if it is words."""
        match part:
            case Words(text):
                return self._words(text, logprobs)
            case Thought(text):
                return self._thought(text)
            case CallBegins(index, name):
                return self._call(name, self._call_id(name, index))
            case CallArguments(_, text):
                return self._arguments(text)
            case CallEnds():
                calling = self._open is not None and self._open.item["type"] in CALLS
                return self._close("completed") if calling else []

    def end(self, *, whole: bool) -> list[Event]:
        """Nothing more comes. whole: not cut."""
        events: list[Event] = []
        if self._open is None and not self.output:
            # Whoever looks for a message finds one.
            events += self._message("".join(self._space), self._space_logprobs)
        return events + self._close("completed" if whole else "incomplete")

    def ended(self, body: ResponseBody) -> Event:
        """The last event. body: of the response as it has ended."""
        of = {"completed": "completed", "incomplete": "incomplete"}.get(body["status"], "failed")
        return self._event(f"response.{of}", response=body)

    def _event(self, of: str, **fields: Any) -> Event:
        event = {"type": of, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _begin(self, item: OutputItem) -> Event:
        self._open = _Open(item, len(self.output))
        self._space, self._space_logprobs = [], []
        return self._event("response.output_item.added", output_index=len(self.output), item=dict(item))

    def _name(self, of: str) -> str:
        return item_id(self._head["id"], prefix(of), OUTPUT, len(self.output))

    # -- words and thoughts ----

    def _words(self, text: str, logprobs: Sequence[PositionEntry]) -> list[Event]:
        if self._open is None or self._open.item["type"] != "message":
            self._space.append(text)
            self._space_logprobs += logprobs
            if not text.strip():
                return []
            held, entries = "".join(self._space), self._space_logprobs
            return self._close("completed") + self._message(held, entries)
        return self._delta(text, logprobs)

    def _message(self, text: str, logprobs: Sequence[PositionEntry]) -> list[Event]:
        item: MessageItem = {
            "type": "message",
            "id": self._name("message"),
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [self._begin(item), self._part_event("added", part), *self._delta(text, logprobs)]

    def _thought(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open.item["type"] != "reasoning":
            events = self._close("completed")
            item: ReasoningItem = {
                "type": "reasoning",
                "id": self._name("reasoning"),
                "status": "in_progress",
                "summary": [],
                "content": [],
            }
            events += [self._begin(item), self._part_event("added", {"type": "reasoning_text", "text": ""})]
        return events + self._delta(text)

    def _delta(self, text: str, logprobs: Sequence[PositionEntry] = ()) -> list[Event]:
        open_ = self._now_open()
        open_.text.append(text)
        open_.logprobs += logprobs
        if not text:
            return []
        of, place = "reasoning_text", {"content_index": 0, "delta": text}
        if open_.item["type"] == "message":
            of, place = "output_text", place | {"logprobs": [] if self._quiet else list(logprobs)}
        return [self._item_event(f"{of}.delta", **place)]

    # -- calls ----

    def _call(self, name: str, call_id: str) -> list[Event]:
        events = self._close("completed")
        tool = self._tools.called(name)
        of: Literal["custom_tool_call", "function_call"]
        of, text = ("custom_tool_call", "input") if tool.kind == "custom" else ("function_call", "arguments")
        item = {
            "type": of,
            "id": self._name(of),
            "status": "in_progress",
            "call_id": call_id,
            "name": tool.name,
            text: "",
        } | ({"namespace": tool.namespace} if tool.namespace else {})
        return [*events, self._begin(cast(FunctionCallItem | CustomCallItem, item))]

    def _arguments(self, text: str) -> list[Event]:
        open_ = self._now_open()
        open_.text.append(text)
        if open_.item["type"] == "custom_tool_call" or not text:
            return []  # its text stands within the arguments, which must be complete to be read
        return [self._item_event("function_call_arguments.delta", delta=text)]

    # -- ends ----

    def _close(self, status: ItemStatus) -> list[Event]:
        """End the item that is open, if there is one."""
        if self._open is None:
            return []
        open_, text = self._open, "".join(self._open.text)
        item = open_.item
        events: list[Event] = []
        if item["type"] == "message":
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": open_.logprobs}
            done = {"content_index": 0, "text": text, "logprobs": open_.logprobs}
            events = [self._item_event("output_text.done", **done), self._part_event("done", part)]
            item = {**item, "content": [cast(Any, part)]}
        elif item["type"] == "reasoning":
            thought = {"type": "reasoning_text", "text": text}
            done = {"content_index": 0, "text": text}
            events = [self._item_event("reasoning_text.done", **done), self._part_event("done", thought)]
            item = {**item, "content": [cast(Any, thought)]}
        elif item["type"] == "function_call":
            events = [self._item_event("function_call_arguments.done", name=item["name"], arguments=text)]
            item = {**item, "arguments": text}
        else:
            said = custom_input(text)
            events = [self._item_event("custom_tool_call_input.delta", delta=said)] if said else []
            events.append(self._item_event("custom_tool_call_input.done", input=said))
            item = {**item, "input": said}
        item = cast(OutputItem, {**item, "status": status})
        events.append(self._event("response.output_item.done", output_index=open_.index, item=item))
        self.output.append(item)
        self._open = None
        return events

    def _now_open(self) -> _Open:
        if self._open is None:
            raise TidePipeError("the answer goes on in an item that has ended")
        return self._open

    def _item_event(self, of: str, **fields: Any) -> Event:
        open_ = self._now_open()
        place = {"item_id": open_.item["id"], "output_index": open_.index}
        return self._event(f"response.{of}", **place, **fields)

    def _part_event(self, of: str, part: dict[str, Any]) -> Event:
        return self._item_event(f"content_part.{of}", content_index=0, part=part)


def broken(error: BaseException, number: int) -> Event:
    """The last event of a stream that cannot go on, whatever becomes of its response."""
    _, body, _ = error_response(error)
    what = body["error"]
    return {
        "type": "error",
        "sequence_number": number,
        "code": what["code"],
        "message": what["message"],
        "param": what["param"],
    }


def custom_input(arguments: str) -> str:
    """The text within the arguments of a custom tool; what is not as it should be comes as it is."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = value.get(CUSTOM_INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) and is_text(text) else arguments


def sse(event: Event) -> bytes:
    """A server-sent event."""
    text = json.dumps(event, allow_nan=False, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {text}\n\n".encode()

"""The request that travels, made of what a caller gives."""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tidepipe.client.types import Prompt
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.codec.inference import tool_choice_to_wire
from tidepipe_common.codec.sampling import sampling_to_wire
from tidepipe_common.errors import ConfigError, InvalidRequestError
from tidepipe_common.limits import MAX_PRIORITY, MAX_REQUEST_BYTES, check_bytes
from tidepipe_common.numerals import host_and_port
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import check_text, is_text, on_one_line
from tidepipe_common.types.request import ANY_TOOL, PLAIN_TEMPLATE, ChatTurn
from tidepipe_common.types.sampling import Pooling, SamplingParams, unsigned_seed
from tidepipe_common.types.structure import Structure
from tidepipe_common.types.thought import TemplateOptions
from tidepipe_common.types.tool_choice import ToolChoice

DISCONNECT_GRACE_MS = 60_000
"""How long the router keeps a request whose client lost its connection: enough to come back."""

WHOLE_ANSWER_GAP_MS = 5000
"""How often the router reports to a client that wants the answer as a whole: often enough to resume from."""

_SAMPLING_FIELDS = tuple(
    field.name for field in dataclasses.fields(SamplingParams) if field.name != "thought"
)


def check_endpoint(endpoint: str) -> str:
    """HOST:PORT as it is; ConfigError if it is something else."""
    address = host_and_port(endpoint)
    if address is None or address[1] == 0:
        raise ConfigError(
            f"endpoint must be HOST:PORT, as `tidepipe up` prints it behind grpc=, got "
            f"{on_one_line(endpoint)[:100]!r}"
        )
    if not is_text(endpoint):
        raise ConfigError("endpoint must be HOST:PORT, in valid Unicode")
    return endpoint


def make_sampling(sampling: SamplingParams | None, overrides: Mapping[str, Any]) -> SamplingParams:
    """Parameters and keyword arguments together, checked; keywords win.

    A seed is drawn here if randomness is wanted and none is given: a retry must ask for the same draws.
    """
    unknown = [name for name in overrides if name not in _SAMPLING_FIELDS]
    if unknown:
        raise InvalidRequestError(
            f"unknown sampling parameter '{unknown[0]}'; known: {', '.join(_SAMPLING_FIELDS)}", unknown[0]
        )
    values = dict(overrides)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    for name in ("stop", "stop_token_ids"):
        if name in values:
            if not isinstance(values[name], Iterable):
                raise InvalidRequestError(f"{name} must be a list, got {_said(values[name])}", name)
            values[name] = tuple(values[name])
    merged = dataclasses.replace(sampling or SamplingParams(), **values)
    _check_types(merged)
    merged = dataclasses.replace(merged, seed=unsigned_seed(merged.seed))
    if not merged.greedy and merged.seed is None:
        merged = dataclasses.replace(merged, seed=secrets.randbits(64))
    merged.check()
    return merged


def _check_no_chat(tools: Sequence[str], tool_choice: ToolChoice, template: TemplateOptions) -> None:
    """InvalidRequestError for what only conversations have: with another prompt it would be left out."""
    for name, given in (
        ("tools", bool(tools)),
        ("tool_choice", tool_choice != ANY_TOOL),
        ("reasoning_effort", bool(template.effort)),
        ("chat_template_kwargs", bool(template.arguments)),
    ):
        if given:
            raise InvalidRequestError(f"{name} goes with a conversation: give messages as the prompt", name)


def make_request(
    prompt: Prompt,
    sampling: SamplingParams,
    *,
    request_id: str | None = None,
    model: str = "",
    skip_text: bool = False,
    keep_special_tokens: bool = False,
    tools: Sequence[str] = (),
    tool_choice: ToolChoice = ANY_TOOL,
    template: TemplateOptions = PLAIN_TEMPLATE,
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
    piece_gap_ms: int = 0,
    user: str = "",
    clamp_max_tokens: bool = False,
    cache_salt: str = "",
    priority: int = 0,
    background: bool = False,
    more_prompts: Sequence[str | Sequence[int]] = (),
) -> pb.InferenceRequest:
    """The request; InvalidRequestError names what cannot be sent."""
    for name, text in (
        ("request_id", request_id or ""),
        ("model", model),
        ("user", user),
        ("cache_salt", cache_salt),
    ):
        check_text(text, name)
    for tool in tools:
        check_text(tool, "tools")
    for name, number in (("ttft_ms", ttft_ms), ("tpot_ms", tpot_ms)):
        if number is not None:
            _check_number(name, number)
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MAX_PRIORITY:
        raise InvalidRequestError(
            f"priority must be a whole number in [-{MAX_PRIORITY}, {MAX_PRIORITY}], got {_said(priority)}",
            "priority",
        )
    if not _is_count(piece_gap_ms, 2**32):
        raise InvalidRequestError(
            f"piece_gap_ms must be milliseconds, got {_said(piece_gap_ms)}", "piece_gap_ms"
        )
    request = pb.InferenceRequest(
        request_id=request_id or f"req-{uuid.uuid4().hex}",
        model=model,
        sampling=sampling_to_wire(sampling),
        disconnect_grace_ms=DISCONNECT_GRACE_MS,
        skip_text=skip_text,
        keep_special_tokens=keep_special_tokens,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        piece_gap_ms=piece_gap_ms,
        user=user,
        clamp_max_tokens=clamp_max_tokens,
        cache_salt=cache_salt,
        priority=priority,
        background=bool(background),
    )
    if isinstance(prompt, str) or (isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], int)):
        _check_no_chat(tools, tool_choice, template)
    if isinstance(prompt, str):
        request.text = check_text(prompt, "prompt")
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise InvalidRequestError(
            f"the prompt must be a text, token ids or a conversation, got {kind(prompt)}", "prompt"
        )
    elif not prompt:
        raise InvalidRequestError("the prompt is empty", "prompt")
    elif isinstance(prompt[0], int):
        _add_ids(request.token_ids, prompt)
    else:
        request.chat.messages.extend(_turn(turn) for turn in prompt)
        request.chat.tools.extend(tools)
        if tool_choice != ANY_TOOL:
            request.chat.tool_choice.CopyFrom(tool_choice_to_wire(tool_choice))
        request.chat.reasoning_effort = check_text(template.effort, "reasoning_effort")
        request.chat.template_arguments = check_text(template.arguments, "chat_template_kwargs")
        request.chat.continue_final_message = template.continued
        request.chat.no_generation_prompt = not template.opened
        request.chat.marks = True
    for further in more_prompts:
        entry = request.more_prompts.add()
        if isinstance(further, str):
            entry.text = check_text(further, "prompt")
        else:
            _add_ids(entry.token_ids, further)
    # A router's library would refuse it without a word that says why.
    check_bytes("a request", request.ByteSize(), MAX_REQUEST_BYTES, "prompt")
    return request


def tools_as_json(tools: Sequence[Mapping[str, Any] | str]) -> tuple[str, ...]:
    """Functions as they travel; InvalidRequestError for what has no JSON."""
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise InvalidRequestError(f"tools must be a list of functions, got {kind(tools)}", "tools")
    return tuple(tool if isinstance(tool, str) else _json("tools", tool) for tool in tools)


def chosen_tool(choice: ToolChoice | str) -> ToolChoice:
    """A choice that may be said in a word, or by a function's name."""
    match choice:
        case ToolChoice():
            return choice
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case str() if choice:
            return ToolChoice("required", (choice,), parallel=False)
    raise InvalidRequestError(
        f"tool_choice must be a ToolChoice or a text, got {kind(choice)}", "tool_choice"
    )


def template_options(effort: str, arguments: Mapping[str, Any] | None) -> TemplateOptions:
    """What a chat's template gets besides its messages and tools."""
    check_text(effort, "reasoning_effort")
    name = "chat_template_kwargs"
    options = TemplateOptions(effort, _json(name, arguments) if arguments else "")
    options.check()
    return options


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name} must be an object of JSON: {error}", name) from None


def _add_ids(message: pb.TokenIds, ids: Sequence[Any]) -> None:
    try:
        message.ids.extend(ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(f"the prompt's token ids are not valid: {error}", "prompt") from error


def _turn(turn: object) -> pb.ChatMessage:
    if isinstance(turn, ChatTurn):
        texts = dataclasses.asdict(turn)
        return pb.ChatMessage(**{key: check_text(text, key, "messages") for key, text in texts.items()})
    if not isinstance(turn, Mapping):
        raise InvalidRequestError(
            f"a turn must be a ChatTurn or a mapping, got {type(turn).__name__}", "messages"
        )
    fields = dict(turn)
    texts = {"role": fields.pop("role", None), "content": fields.pop("content", None)}
    texts |= {key: fields.pop(key, "") for key in ("name", "tool_call_id")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise InvalidRequestError("a turn needs the texts 'role' and 'content'", "messages")
    if fields:
        raise InvalidRequestError(f"a turn has the unknown key {next(iter(fields))!r}", "messages")
    return pb.ChatMessage(**{key: check_text(str(text), key, "messages") for key, text in texts.items()})


_NUMBERS = (
    *("temperature", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_COUNTS = (
    *("top_k", "max_tokens", "min_tokens", "logprobs", "n"),
    *("max_reasoning_tokens", "prompt_logprobs"),
)
_OPTIONAL = ("max_tokens", "logprobs", "max_reasoning_tokens", "prompt_logprobs")


def _check_types(params: SamplingParams) -> None:
    """InvalidRequestError names a parameter of a type, or a number of a size, that cannot be sent."""
    for name in _NUMBERS:
        _check_number(name, getattr(params, name))
    for name in _COUNTS:
        value = getattr(params, name)
        if value is None and name in _OPTIONAL:
            continue
        if not _is_count(value, 2**31, low=-(2**31)):
            raise InvalidRequestError(f"{name} must be a whole number below 2^31, got {_said(value)}", name)
    if params.seed is not None and not _is_count(params.seed, 2**64, low=-(2**63)):
        raise InvalidRequestError(
            f"seed must be a whole number in [-2^63, 2^64), got {_said(params.seed)}", "seed"
        )
    if not isinstance(params.ignore_eos, bool):
        raise InvalidRequestError(
            f"ignore_eos must be true or false, got {_said(params.ignore_eos)}", "ignore_eos"
        )
    for text in params.stop:
        check_text(text, "stop")
    for token_id in params.stop_token_ids:
        if not _is_count(token_id, 2**31):
            raise InvalidRequestError("stop_token_ids must be token ids, in [0, 2^31)", "stop_token_ids")
    if not isinstance(params.logit_bias, Mapping):
        raise InvalidRequestError("logit_bias must map token ids to numbers", "logit_bias")
    for token_id, bias in params.logit_bias.items():
        if not _is_count(token_id, 2**31):
            raise InvalidRequestError("logit_bias must have token ids as names, in [0, 2^31)", "logit_bias")
        _check_number("logit_bias", bias)
    if params.pooling is not None and not isinstance(params.pooling, Pooling):
        raise InvalidRequestError("pooling must be a Pooling", "pooling")
    if params.structure is not None:
        if not isinstance(params.structure, Structure):
            raise InvalidRequestError("structure must be a Structure", "structure")
        check_text(params.structure.text, "structure")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise InvalidRequestError(f"{name} must be a finite number, got {_said(value)}", name)


def _is_count(value: Any, high: int, *, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < high


def _said(value: Any) -> str:
    return (
        kind(value) if not isinstance(value, int | float) or abs(value) < 1e300 else "one that is too large"
    )

"""`tidepipe generate`: a quick streaming client."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.client_options import client_options
from tidepipe.cli.connect import connected
from tidepipe.cli.exit_codes import SUCCESS
from tidepipe.cli.numbers import number
from tidepipe.cli.options import Endpoint, refuse_given
from tidepipe.cli.run import run
from tidepipe_common.dialects import Thought
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.numerals import NumberRange
from tidepipe_common.text.text import on_terminal

if TYPE_CHECKING:
    from tidepipe.client.types import StreamEvent

_MAX_TOKENS = 256
_LEAST_S = 0.001
_GIVE_UP_S = 60.0
"""Without the service; a router that died is back within half a minute, or does not come back by itself."""
_SEEDS = NumberRange.within(True, -(2**63), 2**64 - 1)
_DIM, _USUAL = "\x1b[2m", "\x1b[22m"


@client_options
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to answer; - reads it from stdin.")],
    endpoint: Endpoint,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Use the model's chat template.")] = True,
    system: Annotated[str | None, typer.Option("--system", help="System message (with --chat).")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Output tokens at most.")
    ] = _MAX_TOKENS,
    temperature: Annotated[float, typer.Option("--temperature", help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Share of probability to draw from, likeliest first; 1: all.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0: no limit.")] = 0,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", parser=number(_SEEDS), help="Draws the same answer again."),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Stop string; may be repeated.")] = None,
    model: Annotated[str, typer.Option("--model", help="Model name, if several are served.")] = "",
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds.")] = 600.0,
) -> None:
    """Stream one answer to the terminal.

    Example: `tidepipe generate "Why is the sea salty?" --endpoint 127.0.0.1:7070`
    """
    if not chat:
        refuse_given(context, ("system",), "is a message of a chat: leave it or --no-chat out")
    text = _from_stdin() if prompt == "-" else prompt
    ends = time.monotonic() + timeout
    parameters: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or (),
    }
    # Late, as below; and before anything is waited for.
    from tidepipe.client.requests import make_sampling

    make_sampling(None, parameters)
    parameters["model"] = model
    turns = [{"role": "system", "content": system}] if system else []
    run(_stream(endpoint, [*turns, {"role": "user", "content": text}] if chat else text, parameters, ends))


def _from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequestError("the prompt on stdin is not text in UTF-8; convert it first") from None


def _shown(event: StreamEvent) -> str:
    """What is new, with thoughts dimmed."""
    texts = []
    for part in event.parts:
        text = on_terminal(getattr(part, "text", ""))
        texts.append(f"{_DIM}{text}{_USUAL}" if isinstance(part, Thought) else text)
    return "".join(texts)


async def _stream(endpoint: str, prompt: Any, parameters: dict[str, Any], ends: float) -> int:
    """ends: when its user's patience does, by the monotonic clock."""
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.client.errors import RequestCancelledError
    from tidepipe.client.retry import RetryPolicy

    shown = sys.stdout.isatty()
    retry = RetryPolicy(give_up_s=_GIVE_UP_S, longest_s=2.0)
    async with await connected(endpoint, retry=retry, within_s=ends - time.monotonic()) as client:
        left_s = max(_LEAST_S, round(ends - time.monotonic(), 2))
        async with client.stream(prompt, timeout=left_s, **parameters) as stream:
            async for event in stream:
                # A model may write what steers a terminal; into files and pipes it goes as it is.
                print(_shown(event) if shown else event.text, end="", flush=True)
        print()
        if event.finish_reason is not None and not event.finish_reason.whole:
            raise RequestCancelledError("somebody cancelled the request: this is not the whole answer")
        if event.usage and sys.stderr.isatty():
            usage = event.usage
            spent = max(usage.total_ms - usage.ttft_ms, 1e-3) / 1000
            cached = f" ({usage.cached_tokens} of them cached)" if usage.cached_tokens else ""
            print(
                f"[{usage.prompt_tokens}{cached} + {usage.output_tokens} tokens, first after "
                f"{usage.ttft_ms / 1000:.2f} s, then {(usage.output_tokens - 1) / spent:.1f} tokens/s]",
                file=sys.stderr,
            )
    return SUCCESS

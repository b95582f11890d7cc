"""A client of a router that refuses gaps and repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.fakes.router import RunningRouter
from tidepipe.v1 import inference_pb2 as pb
from tidepipe.v1 import sampling_pb2 as sp

PROMPT = "tell me"
IDS = list(PROMPT.encode())


def request(name: str, *, grace_ms: int = 0, **sampling: object) -> pb.InferenceRequest:
    fields = {"temperature": 0.0, "max_tokens": 40, **sampling}
    return pb.InferenceRequest(
        request_id=name,
        text=PROMPT,
        sampling=sp.SamplingParams(**fields),  # type: ignore[arg-type]
        disconnect_grace_ms=grace_ms,
    )


class Heard:
    """What a client has of one answer; refuses gaps and repeats."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.last: pb.AnswerDelta | None = None

    def take(self, delta: pb.AnswerDelta) -> None:
        assert self.last is None or not self.last.finish_reason
        assert (delta.token_offset, delta.character_offset) == (len(self.tokens), len(self.text))
        self.tokens += delta.token_ids
        self.text += delta.text
        self.last = delta

    @property
    def position(self) -> pb.StreamPosition:
        return pb.StreamPosition(tokens=len(self.tokens), characters=len(self.text))

    @property
    def end(self) -> pb.AnswerDelta:
        assert self.last is not None
        return self.last


async def listen(
    router: RunningRouter, wanted: pb.InferenceRequest, heard: Heard | None = None, until: int = 10**9
) -> Heard:
    """Stream to the end, or leave after `until` tokens."""
    heard = heard or Heard()
    resume = [heard.position] if heard.tokens else []
    call = router.stub.Generate(pb.GenerateRequest(request=wanted, resume=resume), timeout=20)
    async for message in call:
        heard.take(message.delta)
        if len(heard.tokens) >= until:
            call.cancel()
            break
    return heard


async def eventually(check: Callable[[], bool]) -> None:
    """A truth that needs a moment."""
    async with asyncio.timeout(30):  # of a machine that is busy with other things
        while not check():  # noqa: ASYNC110 - others' state, without events
            await asyncio.sleep(0.01)

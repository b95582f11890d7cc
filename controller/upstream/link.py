"""One server as it is known: what it serves, how to ask it, and whether it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import structlog

from controller.upstream.client import LINE_BYTES, Allowance, Failure, UpstreamClient, UpstreamError
from controller.upstream.dialects import DIALECTS, BrokenAnswerError, Dialect, OpenAi
from controller.upstream.model import ModelText, UpstreamModel
from tidepipe_common.errors import ConfigError, IncompatibleError, UnavailableError
from tidepipe_common.notifier import Notifier
from tidepipe_common.settings.upstream import UPSTREAM_API_KEY
from tidepipe_common.text.text import is_text, quoted

LOOK_S = 1.0
DOWN_AFTER = 2
"""Looks in a row that went wrong; a connection that is refused is enough by itself."""
START_PATIENCE_S = 120.0
PROBE_S = 60.0
SAY_EVERY_S = 10.0
UNSAID_CONTEXT = 4096
"""Tokens, where neither the server nor the model's files say."""

log = structlog.get_logger()


class UpstreamLink:
    """up: it answers; problem: why not. Known after `bring_up`: dialect, model_name, context_length."""

    def __init__(
        self, client: UpstreamClient, model: UpstreamModel, *, wanted_name: str, dialect: str, context: int
    ) -> None:
        """wanted_name, context: of the settings; empty and 0: what the server says."""
        self.client = client
        self.url = client.url
        self.text: ModelText = model.text
        self.vocab_size = model.vocab_size
        self.ends: Sequence[int] = model.ends
        self.up = False
        self.problem = "it was not asked yet"
        self.downs = 0
        self.dialect: Dialect = OpenAi()
        self.model_name = wanted_name
        self.context_length = 0
        self.changed = Notifier()
        self._model = model
        self._wanted_name = wanted_name
        self._wanted_dialect = dialect
        self._context = context
        self._health_path = "/health"
        self._bad_looks = 0
        self._look_now = asyncio.Event()

    @property
    def detail(self) -> str:
        """What it is, and what cannot be promised, for people."""
        what = f"the server at {self.url} ({self.model_name}, by {self.dialect.name})"
        if not self.up:
            return f"{what} does not answer: {self.problem}"
        return f"{what}; it schedules by itself, its memory is not known here; {self.dialect.loses}"

    # -- in the beginning ---------------------------------------------------------------------------

    async def bring_up(self) -> None:
        """Wait until it answers and find out how to ask it. UnavailableError if it does not, ConfigError or
        IncompatibleError if it does not fit."""
        loop = asyncio.get_running_loop()
        end = said = loop.time() + START_PATIENCE_S
        while True:
            try:
                await self._get_to_know()
                self._turn(True, "")
                return
            except UpstreamError as error:
                if error.failure is Failure.DENIED and error.status in (401, 403):
                    raise ConfigError(
                        f"{self.url} does not let us in ({error}): give its key by {UPSTREAM_API_KEY}"
                    ) from error
                if loop.time() >= end:
                    raise UnavailableError(
                        f"no usable answer from {self.url} for {START_PATIENCE_S:g} s: {error}"
                    ) from error
                if loop.time() >= said or said == end:
                    said = loop.time() + SAY_EVERY_S
                    log.info("waiting for the server", url=self.url, reason=str(error))
            await asyncio.sleep(LOOK_S)

    async def _get_to_know(self) -> None:
        status, models = await self.client.ask("/v1/models")
        if status in (401, 403):
            raise UpstreamError(Failure.DENIED, f"HTTP {status}", status)
        if status != 200:
            raise UpstreamError(Failure.BUSY, f"HTTP {status} for /v1/models", status)
        entry = self._entry(models)
        self.model_name = str(entry["id"])
        self.context_length = self._context or _length(entry) or self._model.context_length or UNSAID_CONTEXT
        status, _ = await self.client.ask("/health")
        self._health_path = "/v1/models" if status in (404, 405, 501) else "/health"
        self.dialect = await self._find_dialect()
        log.info(
            "the server answers",
            url=self.url,
            model=self.model_name,
            context_length=self.context_length,
            dialect=self.dialect.name,
            cannot_promise=self.dialect.loses,
        )

    def _entry(self, models: Any) -> Mapping[str, Any]:
        """Of the model among those that it serves; ConfigError if there is none."""
        listed = models.get("data") if isinstance(models, dict) else None
        entries: list[Mapping[str, Any]] = [
            one for one in (listed if isinstance(listed, list) else []) if _named(one)
        ]
        if not entries:
            raise ConfigError(f"{self.url}/v1/models lists no model: is this an OpenAI-compatible server?")
        for one in entries:
            if not self._wanted_name or one["id"] == self._wanted_name:
                return one
        names = ", ".join(quoted(one["id"]) for one in entries[:8])
        raise ConfigError(f"{self.url} does not serve {self._wanted_name!r}; it has: {names}")

    async def _find_dialect(self) -> Dialect:
        if self._wanted_dialect == "sglang":
            return DIALECTS["sglang"]
        if self._wanted_dialect == "auto":
            status, about = await self.client.ask("/get_model_info")
            if status == 200 and isinstance(about, dict) and "model_path" in about:
                return DIALECTS["sglang"]
        if self._wanted_dialect in ("auto", "llama.cpp"):
            if await self._is_llama_cpp():
                return DIALECTS["llama.cpp"]
            if self._wanted_dialect == "llama.cpp":
                raise ConfigError(f"{self.url} is not llama.cpp's server: leave --dialect out")
        return await self._probe_completions()

    async def _is_llama_cpp(self) -> bool:
        """By what it says of its slots, and whether it tells token ids. A slot's context is a request's."""
        status, about = await self.client.ask("/props")
        settings = about.get("default_generation_settings") if isinstance(about, dict) else None
        if status != 200 or not isinstance(settings, dict):
            return False
        text, ids = self.text.sample
        status, told = await self.client.ask("/tokenize", {"content": text, "add_special": True})
        if status != 200 or not isinstance(told, dict):
            return False
        self._check_tokens(told.get("tokens"), ids)
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "stream": True, "return_tokens": True}
        try:
            first = await self._first("/completion", body, lambda event: event)
        except UpstreamError as error:
            if error.failure in (Failure.DOWN, Failure.BUSY):
                raise
            return False
        if not isinstance(first.get("tokens"), list) or "tokens_predicted" not in first:
            return False
        context = settings.get("n_ctx")
        if not self._context and type(context) is int and 2 <= context < 2**31:
            self.context_length = min(self.context_length, context) if self.context_length else context
        return True

    async def _probe_completions(self) -> Dialect:
        """By a short completion: are token ids told, and are they those of our tokenizer?"""
        text, ids = self.text.sample
        body: dict[str, Any] = {
            "model": self.model_name, "prompt": text, "max_tokens": 1, "temperature": 0, "stream": True
        }  # fmt: skip
        try:
            first = await self._first_choice({**body, "return_token_ids": True, "top_k": 0, "min_p": 0.0})
        except UpstreamError as error:
            if error.failure is not Failure.REFUSED:
                raise
            await self._first_choice(body)
            return self._text_only(OpenAi(extended=False))
        theirs = first.get("prompt_token_ids")
        if not isinstance(first.get("token_ids"), list):
            # Token ids as a prompt are what everything else rests on.
            await self._first_choice({**body, "prompt": ids})
            return self._text_only(OpenAi())
        if theirs is not None:
            self._check_tokens(theirs, ids)
        return self._text_only(OpenAi()) if self._wanted_dialect == "openai" else DIALECTS["vllm"]

    def _check_tokens(self, theirs: Any, ours: list[int]) -> None:
        if theirs != ours:
            raise IncompatibleError(
                f"{self.url} makes other tokens of the same text than {self._model.name} here: it serves "
                "another model; name the same one with --model"
            )

    def _text_only(self, dialect: Dialect) -> Dialect:
        if self._wanted_dialect == "vllm":
            raise ConfigError(
                f"{self.url} tells no token ids (return_token_ids): use --dialect openai, or auto"
            )
        return dialect

    async def _first_choice(self, body: dict[str, Any]) -> dict[str, Any]:
        def choice(event: Any) -> Any:
            choices = event.get("choices") if isinstance(event, dict) else None
            return choices[0] if choices and isinstance(choices, list) else None

        return await self._first("/v1/completions", body, choice)

    async def _first(self, path: str, body: dict[str, Any], wanted: Callable[[Any], Any]) -> dict[str, Any]:
        """The first object that `wanted` finds in an event of an answer."""
        try:
            async with (
                asyncio.timeout(PROBE_S),
                aclosing(self.client.events(path, body, Allowance(LINE_BYTES))) as events,
            ):
                async for event in events:
                    if isinstance(found := wanted(event), dict):
                        return found
        except TimeoutError as error:
            raise UpstreamError(Failure.BROKEN, f"no token within {PROBE_S:g} s") from error
        raise UpstreamError(Failure.BROKEN, "a completion without a choice")

    # -- while it serves ----------------------------------------------------------------------------

    def doubt(self, error: UpstreamError) -> None:
        """A request went wrong: look after the server at once."""
        if error.failure is Failure.DOWN:
            self._turn(False, str(error))
        self._look_now.set()

    async def run(self) -> None:
        """Look after it until cancelled."""
        while True:
            self._look_now.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._look_now.wait()
                await asyncio.sleep(LOOK_S / 10)  # many requests go wrong together
            except TimeoutError:
                pass
            await self._look()

    async def _look(self) -> None:
        try:
            status, _ = await self.client.ask(self._health_path)
            problem = "" if status == 200 else f"HTTP {status} for {self._health_path}"
            if not problem and not self.up:
                await self._same_as_before()
        except (UpstreamError, BrokenAnswerError, ConfigError) as error:
            problem = str(error)
        if not problem:
            self._bad_looks = 0
            self._turn(True, "")
            return
        self._bad_looks += 1
        if self._bad_looks >= DOWN_AFTER or not self.up:
            self._turn(False, problem)

    async def _same_as_before(self) -> None:
        """A server that was gone may have come back as another one."""
        _, models = await self.client.ask("/v1/models")
        entry = self._entry(models)
        if entry["id"] != self.model_name:
            raise ConfigError(f"it serves {quoted(entry['id'])} now, not {self.model_name!r}")
        length = _length(entry)
        if length and length < self.context_length:
            raise ConfigError(f"its context is {length} tokens now, not {self.context_length}")
        if (await self._find_dialect()).name != self.dialect.name:
            raise ConfigError(f"it does not answer as before ({self.dialect.name})")

    def _turn(self, up: bool, problem: str) -> None:
        if up == self.up:
            self.problem = problem
            return
        self.up, self.problem = up, problem
        self.downs += not up
        if up:
            log.info("the server is up", url=self.url)
        else:
            log.warning("the server is down", url=self.url, reason=problem)
        self.changed.notify_all()


def _named(entry: Any) -> bool:
    """The name goes back to it in each request, so it must be text."""
    name = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(name, str) and 0 < len(name) <= 1024 and is_text(name)


def _length(entry: Mapping[str, Any]) -> int:
    value = entry.get("max_model_len")
    return value if type(value) is int and 2 <= value < 2**31 else 0

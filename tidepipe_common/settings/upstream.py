"""The settings of an instance that stands for a server of somebody else's making."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from tidepipe_common.errors import ConfigError
from tidepipe_common.model_names import usual_name
from tidepipe_common.numerals import MAX_COUNT
from tidepipe_common.security.credentials import is_loopback
from tidepipe_common.settings import fields
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.instance import InstanceSettings

UPSTREAM_API_KEY = "TIDEPIPE_UPSTREAM_API_KEY"
"""The key for the server itself: by the environment only, as command lines are everybody's to read. Of the
server number N, from 0, among several with keys of their own: with _N behind the name."""


def base_url(value: str) -> str:
    """A server's address as it is used: without a slash or /v1 at its end. ValueError says what is wrong."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"must not hold a password; give a key by {UPSTREAM_API_KEY}")
    if parts.query or parts.fragment or not re.fullmatch(r"[\x21-\x2b\x2d-\x7e]+", value):
        raise ValueError("must be an address alone, without a query, a comma or spaces")
    _ = parts.port  # ValueError of its own
    return value.rstrip("/").removesuffix("/v1").rstrip("/")


class UpstreamSettings(InstanceSettings):
    """An instance that forwards to an OpenAI-compatible server (vLLM, SGLang, llama.cpp)."""

    service: ClassVar[str] = "controller.upstream"

    url: Annotated[
        str,
        AfterValidator(base_url),
        setting("The server, such as http://127.0.0.1:8000.", metavar="URL", min_length=1),
    ]
    model: fields.Model
    upstream_model: Annotated[
        str, setting("Its name of the model.", metavar="NAME", otherwise="the first that it lists")
    ] = ""
    dialect: Annotated[
        Literal["auto", "vllm", "sglang", "llama.cpp", "openai"],
        setting("How to ask it; auto finds out.", metavar="D"),
    ] = "auto"
    context_length: Annotated[
        int,
        setting(
            "Tokens of prompt and output together; 0: what the server or the model's folder says.",
            ge=0,
            le=MAX_COUNT,
        ),
    ] = 0
    max_running: Annotated[
        int, setting("Requests under way at the server at a time; 0: 64.", ge=0, le=4096)
    ] = 0
    max_sequences: Annotated[
        int, setting("Requests accepted at most, waiting ones included; 0: 1024.", ge=0, le=2**20)
    ] = 0
    first_token_s: Annotated[
        float, setting("Longest wait for an answer's first token, seconds.", metavar="S", gt=0, lt=1e5)
    ] = 300.0
    silence_s: Annotated[
        float, setting("Longest wait for each further token, seconds.", metavar="S", gt=0, lt=1e5)
    ] = 60.0
    advertise: Annotated[
        str, setting("Address for the router.", metavar="HOST:PORT", otherwise="that of --listen")
    ] = ""
    instance_id: Annotated[str, setting("Name of the instance.", metavar="NAME")] = "upstream-0"
    router: Annotated[str | None, setting("Router to register at.", metavar="HOST:PORT")] = None

    @property
    def served_names(self) -> tuple[str, ...]:
        """A name of its own in any case: the server may call the model otherwise."""
        return super().served_names or (usual_name(self.model),)

    @property
    def places(self) -> int:
        """Requests under way at a time."""
        return self.max_running or 64

    @property
    def room(self) -> int:
        """Requests accepted at most."""
        return max(self.max_sequences or 1024, self.places)


def is_upstream_key(name: str) -> bool:
    """Is this environment variable for these processes alone?"""
    return name == UPSTREAM_API_KEY or name.startswith(UPSTREAM_API_KEY + "_")


def upstream_key(environment: Mapping[str, str], number: int) -> str:
    """The key for one of the servers: its own, else that of all; empty if there is none."""
    return environment.get(f"{UPSTREAM_API_KEY}_{number}", environment.get(UPSTREAM_API_KEY, ""))


def check_upstream_keys(environment: Mapping[str, str], count: int) -> None:
    """ConfigError for a key whose server is not among so many: a slip, or an environment meant for others."""
    known = {f"{UPSTREAM_API_KEY}_{number}" for number in range(count)}
    for name in sorted(environment):
        if name.startswith(UPSTREAM_API_KEY + "_") and name not in known:
            raise ConfigError(
                f"{name} is for no server: --upstream names {count}, whose keys are numbered from _0 on"
            )


def check_key_travels(url: str, key: str, insecure: bool) -> str | None:
    """Why a key must not be sent to that address; None if it may."""
    parts = urlsplit(url)
    if not key or parts.scheme == "https" or is_loopback(parts.hostname or "") or insecure:
        return None
    return (
        f"the key in {UPSTREAM_API_KEY} must not travel to {url} in the clear: use https, or --insecure if "
        "the network itself keeps strangers out"
    )

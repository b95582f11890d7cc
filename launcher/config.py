"""Settings of a local cluster: from flags, from a TOML file, or from both (flags win)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidepipe_common.errors import ConfigError
from tidepipe_common.limits import MAX_STORED_BYTES
from tidepipe_common.security.credentials import is_loopback

Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""Services count in integers of 32 bits."""
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Policy = Literal["auto", "td-pipe", "separate", "hybrid", "padg", "padg-apart", "padg-published"]
Executor = Literal["torch", "emulated"]
LogLevel = Literal["debug", "info", "warning", "error"]


class ClusterConfig(BaseModel):
    """What to start. Names are those of the flags of `tidepipe up`, with underscores.

    None leaves the choice to the service in question. Ports: 0 picks a free one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1)
    stages: int = Field(default=1, ge=1, le=64)
    instances: int = Field(default=1, ge=1, le=64)
    host: str = Field(default="127.0.0.1", min_length=1)
    http_port: Port = 0
    grpc_port: Port = 0
    dtype: DType = "auto"
    quantization: Literal["int8"] | None = None
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?)$")
    fabric: Literal["nccl", "gloo"] | None = None
    policy: Policy = "auto"
    routing: str | None = None
    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    macro_min: Count | None = None
    macro_max: Count | None = None
    max_pending: Count | None = None
    provisioner: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    executor: Executor = "torch"
    profile: str | None = None
    predictor: str | None = None
    hardware: str | None = None
    threads: Count | None = None
    memory_gib: float | None = Field(default=None, gt=0, le=1e6)
    block_size: int | None = Field(default=None, ge=1, le=1024)
    kv_blocks: Count | None = None
    layer_split: str | None = Field(default=None, pattern=r"^[0-9]{1,5}(,[0-9]{1,5})*$")
    token_mix: str | None = Field(default=None, pattern=r"^[1-9][0-9]{0,8}:[1-9][0-9]{0,8}$")
    prefill_tokens: Count | None = None
    max_sequences: Count | None = None
    max_running: Count | None = None
    reserve: float | None = Field(default=None, ge=-100, le=0.9)
    policy_settings: str | None = None
    microbatches: Count | None = None
    allow_download: bool = False
    metrics: bool = False
    journal: str | None = None
    tls: str | None = Field(default=None, min_length=1)
    api_keys: str | None = Field(default=None, min_length=1)
    insecure: bool = False
    cluster_token: str | None = Field(default=None, min_length=1)
    files_max_bytes: int | None = Field(default=None, ge=1, le=MAX_STORED_BYTES)
    files_expire_days: float | None = Field(default=None, ge=0, lt=1e5)
    allow_host: str | None = Field(default=None, min_length=1)
    allow_origin: str | None = Field(default=None, min_length=1)
    max_connections: Count | None = None
    run_dir: str | None = None
    data_dir: str | None = None
    verbose: bool = False
    log_level: LogLevel = "info"

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.layer_split is not None and len(self.layer_split.split(",")) != self.stages:
            raise ValueError(
                f"layer_split '{self.layer_split}' must name {self.stages} numbers, one per stage"
            )
        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"refusing to listen on {self.host} without TLS, where others could reach it: give --tls "
                "auto or --tls DIR (`tidepipe certs make DIR`); or --insecure if the network is closed"
            )
        if self.api_keys is not None and self.tls is None:
            raise ValueError("API keys must not travel in the clear: give --tls auto or --tls DIR as well")
        if self.provisioner == "ray" and self.tls == "auto":
            raise ValueError(
                "other nodes would not have the certificates of --tls auto: run `tidepipe certs make DIR "
                "--host ...` with all nodes' addresses, copy DIR to the same path on each node, and give "
                "--tls DIR"
            )
        self._check_policy_settings()
        if self.hardware is not None and self.executor != "emulated":
            raise ValueError("hardware names the device that --executor emulated stands in for")
        if self.quantization is not None and self.executor == "emulated":
            raise ValueError("quantization is for --executor torch; emulated workers compute nothing")
        if self.fabric is not None and self.executor == "emulated":
            raise ValueError("fabric is for --executor torch; emulated workers have no devices")
        return self

    def _check_policy_settings(self) -> None:
        # Late: what only names a cluster need not load the scheduler.
        if self.policy_settings is not None:
            from controller.scheduler.policies.catalog import parse_knobs

            try:
                parse_knobs(self.policy_settings, self.policy)
            except ConfigError as error:
                raise ValueError(f"policy_settings: {error}") from error

    @property
    def stage_threads(self) -> int:
        """Compute threads of one stage worker: the machine's cores, evenly."""
        return self.threads or max(1, (os.cpu_count() or 1) // (self.stages * self.instances))


def load_config(
    file: Path | None, flags: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> ClusterConfig:
    """Settings from `file` (if any), overridden by those flags that are not None.

    defaults: for what neither says.
    ConfigError names the setting that is wrong, unknown, or not available in this version.
    """
    settings = {**(defaults or {}), **(_read(file) if file else {})}
    settings |= {name: value for name, value in flags.items() if value is not None}
    if "model" not in settings:
        raise ConfigError("no model given; name one with --model")
    try:
        return ClusterConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, file)) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as source:
            return tomllib.load(source)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except RecursionError:
        raise ConfigError(f"{file} is not usable TOML: nested too deeply") from None
    except ValueError as error:  # integers with thousands of digits as well
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _first_problem(error: ValidationError, file: Path | None) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    where = f" (in {file} or as a flag)" if file else ""
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ") + where
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"unknown setting '{name}'{where}; known: {', '.join(ClusterConfig.model_fields)}"
    return f"{name}: {problem['msg']}, got {problem['input']!r}{where}"

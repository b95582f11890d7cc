"""The settings of a local cluster: those of its services, and of how many there are."""

from __future__ import annotations

import os
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from tidepipe_common.model_names import usual_name
from tidepipe_common.numerals import host_and_port
from tidepipe_common.security.credentials import is_loopback
from tidepipe_common.settings import defaults, fields
from tidepipe_common.settings.adapters import parse_adapters
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.definition import setting, settings_of
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.settings.service import Strict
from tidepipe_common.settings.stage_worker import StageWorkerSettings
from tidepipe_common.settings.upstream import base_url


def _urls(value: str | None) -> str | None:
    return None if value is None else ",".join(base_url(one) for one in value.split(","))


_NATIVE_ONLY = (
    "executor",
    "quantization",
    "model_code",
    "device",
    "fabric",
    "threads",
    "memory_gib",
    "kv_offload",
    "lora",
    "network_gbit",
)
"""Settings of stage workers that have no meaning for another engine."""
_ROUTER_ONLY = (
    "http_port",
    "grpc_port",
    "routing",
    "prefill_instances",
    "share_prefixes",
    "macro_min",
    "macro_max",
    "scaling_start_s",
    "max_pending",
    "files_max_bytes",
    "max_stored_bytes_per_key",
    "max_stored_items_per_key",
    "files_expire_days",
    "responses_max_bytes",
    "responses_max_count",
    "responses_expire_days",
    "responses_background",
    "responses_background_per_key",
    "responses_background_bytes",
    "data_dir",
    "allow_host",
    "allow_origin",
    "max_connections",
)
"""Settings of a router, which have no meaning beside one that is there."""


class ClusterConfig(Strict):
    """What to start. Names are those of the flags of `tidepipe up`, with underscores.

    None leaves the choice to the service in question. Ports: 0 picks a free one.
    """

    model: fields.Model
    stages: Annotated[
        int, setting("Stages of each pipeline: one process and device each.", metavar="S", ge=1, le=64)
    ] = 1
    instances: Annotated[int, setting("Pipelines.", ge=1, le=64)] = 1
    served_model_name: fields.ServedModelName | None = None
    router: Annotated[
        str | None,
        setting(
            "Bring this model to a router that is there, such as another cluster's, instead of starting one.",
            metavar="HOST:PORT",
            otherwise="one of its own",
        ),
    ] = None
    host: Annotated[str, setting("Address to listen on.", metavar="H", min_length=1)] = "127.0.0.1"
    http_port: Annotated[
        int, setting("Port of the OpenAI HTTP API; 0: a free one.", metavar="P", ge=0, le=65_535)
    ] = 0
    grpc_port: Annotated[
        int, setting("Port of the gRPC API; 0: a free one.", metavar="P", ge=0, le=65_535)
    ] = 0
    dtype: fields.Dtype = "auto"
    quantization: fields.Quantization | None = None
    model_code: fields.ModelCode = "auto"
    device: fields.Device = "auto"
    fabric: fields.Fabric | None = None
    policy: fields.Policy = "auto"
    routing: Annotated[
        fields.Routing | None,
        setting(
            "Where requests go.", metavar="R", otherwise=f"the policy's own, or {defaults.USUAL_ROUTING}"
        ),
    ] = None
    prefill_instances: fields.PrefillInstances | None = None
    tool_parser: fields.ToolParser | None = None
    reasoning_parser: fields.ReasoningParser | None = None
    pooling: fields.PoolingName | None = None
    share_prefixes: fields.SharePrefixes = False
    ttft_ms: fields.TtftMs | None = None
    tpot_ms: fields.TpotMs | None = None
    macro_min: fields.MacroMin | None = None
    macro_max: fields.MacroMax | None = None
    scaling_start_s: fields.ScalingStartS | None = None
    max_pending: fields.MaxPending | None = None
    upstream: Annotated[
        str | None,
        AfterValidator(_urls),
        setting(
            "OpenAI-compatible server (vLLM, SGLang, llama.cpp) as an instance, instead of own stages.",
            metavar="URL",
            otherwise="none",
            repeatable=True,
            min_length=1,
        ),
    ] = None
    provisioner: Annotated[Literal["local", "ray"], setting("Where instances run.", metavar="P")] = "local"
    ray_address: Annotated[
        str | None, setting("Ray cluster to join.", metavar="HOST:PORT", otherwise="auto")
    ] = None
    engine: fields.Engine = "native"
    tensor_parallel: fields.TensorParallel = 1
    engine_args: fields.EngineArgs | None = None
    executor: fields.Executor = "torch"
    profile: fields.Profile | None = None
    network_gbit: fields.NetworkGbit | None = None
    predictor: fields.LengthModel | None = None
    hardware: fields.Hardware | None = None
    threads: fields.Threads | None = None
    memory_gib: fields.MemoryGib | None = None
    kv_offload: fields.KvOffload | None = None
    lora: fields.Lora | None = None
    block_size: fields.BlockSize | None = None
    kv_blocks: fields.KvBlocks | None = None
    layer_split: fields.LayerSplit | None = None
    token_mix: fields.TokenMixText | None = None
    prefill_tokens: fields.PrefillTokens | None = None
    max_sequences: fields.MaxSequences | None = None
    max_running: fields.MaxRunning | None = None
    reserve: fields.Reserve | None = None
    policy_settings: fields.PolicySettings | None = None
    prefill_policy_settings: Annotated[
        str | None,
        setting(
            "Policy settings of the first --prefill-instances instances, such as token_budget=1024.",
            metavar="NAME=VALUE,..",
            otherwise="those of all",
        ),
    ] = None
    microbatches: fields.Microbatches | None = None
    prefix_caching: fields.PrefixCaching | None = None
    kv_transfer: fields.KvTransfer | None = None
    length_signal: fields.LengthSignal | None = None
    allow_download: fields.AllowDownload = False
    metrics: Annotated[bool, setting("Give every process a port with Prometheus metrics.")] = False
    otlp: fields.Otlp | None = None
    journal: fields.JournalPath | None = None
    tls: Annotated[
        str | None,
        setting(
            "Certificates of `tidepipe certs make DIR`, or auto: new ones.",
            metavar="DIR|auto",
            otherwise="none",
            min_length=1,
        ),
    ] = None
    api_keys: fields.ApiKeys | None = None
    insecure: fields.TlsUnneeded = False
    cluster_token: Annotated[
        fields.TokenFile | None,
        setting(
            "Token of a cluster without TLS, to share it with another's; made if it is not there.",
            metavar="FILE",
            otherwise="a new one",
            strict=False,
        ),
    ] = None
    files_max_bytes: fields.FilesMaxBytes | None = None
    max_stored_bytes_per_key: fields.MaxStoredBytesPerKey | None = None
    max_stored_items_per_key: fields.MaxStoredItemsPerKey | None = None
    files_expire_days: fields.FilesExpireDays | None = None
    responses_max_bytes: fields.ResponsesMaxBytes | None = None
    responses_max_count: fields.ResponsesMaxCount | None = None
    responses_expire_days: fields.ResponsesExpireDays | None = None
    responses_background: fields.ResponsesBackground | None = None
    responses_background_per_key: fields.ResponsesBackgroundPerKey | None = None
    responses_background_bytes: fields.ResponsesBackgroundBytes | None = None
    allow_host: fields.AllowHost | None = None
    allow_origin: fields.AllowOrigin | None = None
    max_connections: fields.MaxConnections | None = None
    run_dir: Annotated[
        str | None,
        setting("Folder for the processes' logs.", metavar="DIR", otherwise="a temporary one"),
    ] = None
    data_dir: Annotated[
        fields.DataDir | None,
        setting(
            "Folder that keeps files and batches of the HTTP API.",
            metavar="DIR",
            otherwise="they end with the cluster",
        ),
    ] = None
    verbose: Annotated[bool, setting("Show the processes' logs on stderr.")] = False
    log_level: fields.LogLevel = "info"

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.upstream is not None:
            self._upstreams_fit()
        if self.router is not None:
            self._fit_router(self.router)
        if self.layer_split:
            fields.check_layer_split(self.layer_split, self.stages)
        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"refusing to listen on {self.host} without TLS, where others could reach it: give --tls "
                "auto or --tls DIR (`tidepipe certs make DIR`); or --insecure if the network is closed"
            )
        self._fit_places()
        if self.api_keys is not None and self.tls is None:
            raise ValueError("API keys must not travel in the clear: give --tls auto or --tls DIR as well")
        if self.provisioner == "ray" and self.tls == "auto":
            raise ValueError(
                "other nodes would not have the certificates of --tls auto: run `tidepipe certs make DIR "
                "--host ...` with all nodes' addresses, copy DIR to the same path on each node, and give "
                "--tls DIR"
            )
        if self.kv_offload is not None and self.prefix_caching == "off":
            raise ValueError("kv_offload keeps KV blocks that are found again: not with prefix_caching off")
        if self.hardware is not None and self.executor != "emulated":
            raise ValueError("hardware names the device that --executor emulated stands in for")
        if self.ray_address is not None and self.provisioner != "ray":
            raise ValueError("ray_address is for --provisioner ray")
        if self.network_gbit is not None and self.executor != "emulated":
            raise ValueError("network_gbit is the link of --executor emulated; others have a real one")
        if self.quantization is not None and self.executor == "emulated":
            raise ValueError("quantization is for --executor torch; emulated workers compute nothing")
        if self.lora is not None:
            self._fit_adapters(self.lora)
        if self.quantization is not None and self.device.startswith("cuda"):
            raise ValueError(f"quantization {self.quantization} is for CPUs, not for {self.device}")
        if self.fabric is not None:
            self._fit_fabric(self.fabric)
        targets = self.ttft_ms is not None or self.tpot_ms is not None
        by_itself = self.routing is None and self.policy == "auto" and targets
        known = by_itself or self.routing in defaults.ROUTING_WITH_ROLES
        if self.prefill_instances and not (known or self.prefill_policy_settings):
            raise ValueError(
                "prefill_instances is for routing roles or auto: give --routing roles, or --policy auto with "
                "--ttft-ms and --tpot-ms"
            )
        self._fit_kinds()
        lower, upper = self.macro_min or defaults.MACRO_MIN, self.macro_max or defaults.MACRO_MAX
        if fault := defaults.macro_fault(lower, upper):
            raise ValueError(fault)
        if self.engine == "vllm":
            self._fit_vllm()
        elif self.tensor_parallel > 1 or self.engine_args is not None:
            flag = "--engine-args" if self.engine_args is not None else "--tensor-parallel"
            raise ValueError(f"{flag} is for --engine vllm")
        return self

    def _fit_fabric(self, fabric: str) -> None:
        if self.executor == "emulated":
            raise ValueError("fabric is for --executor torch; emulated workers have no devices")
        moves = "cuda" if fabric == "nccl" else "cpu"
        if self.device != "auto" and self.device.partition(":")[0] != moves:
            raise ValueError(f"fabric {fabric} moves activations between {moves} devices, not {self.device}")

    def _fit_places(self) -> None:
        if self.http_port and self.http_port == self.grpc_port:
            raise ValueError(f"http_port and grpc_port are both {self.http_port}; choose another for one")
        journal, count = self.journal, self.instances_wanted
        if journal is not None and journal.suffix == defaults.JOURNAL_SUFFIX and count > 1:
            raise ValueError(
                f"journal {journal} is a file, and each of {count} instances writes its own: give a folder"
            )

    def _fit_kinds(self) -> None:
        if (self.prefill_instances or 0) >= self.instances_wanted:
            raise ValueError(
                f"prefill_instances {self.prefill_instances} of {self.instances_wanted} leaves no instance "
                "that decodes: give more --instances, or fewer --prefill-instances"
            )
        if self.routing == "taichi" and not (self.prefill_instances and self.prefill_policy_settings):
            raise ValueError(
                f"{defaults.ALL_ALIKE}: give --prefill-instances P and --prefill-policy-settings "
                "token_budget=1024"
            )

    def _upstreams_fit(self) -> None:
        urls = self.upstreams
        if len(set(urls)) < len(urls):
            raise ValueError("upstream names a server twice")
        if self.provisioner != "local":
            raise ValueError("upstream servers are reached from this machine: not with --provisioner ray")
        own = (
            "stages",
            "instances",
            "engine",
            "quantization",
            "executor",
            "profile",
            "network_gbit",
            "kv_offload",
            "lora",
            "journal",
        )
        if given := [name for name in own if getattr(self, name) != type(self).model_fields[name].default]:
            raise ValueError(f"{given[0]} is of own stages, which a cluster of upstream servers has none of")

    def _fit_adapters(self, lora: str) -> None:
        if self.executor == "emulated":
            raise ValueError("lora is for --executor torch; emulated workers compute nothing")
        if both := {place.name for place in parse_adapters(lora)}.intersection(self.served_names):
            raise ValueError(f"lora names an adapter {min(both)}, as the model itself is called")

    def _fit_router(self, router: str) -> None:
        address = host_and_port(router)
        if address is None:
            raise ValueError(f"router must be HOST:PORT, got '{router}'")
        if given := [
            name for name in _ROUTER_ONLY if getattr(self, name) != type(self).model_fields[name].default
        ]:
            raise ValueError(f"{given[0]} is of a router, and with --router there is one already")
        if is_loopback(self.host) and not is_loopback(address[0]):
            raise ValueError(
                f"the router at {router} could not reach instances at {self.host}: "
                "give --host, this machine's address for it"
            )

    @property
    def served_names(self) -> tuple[str, ...]:
        """By which clients ask for the model: those given, or the usual one."""
        return tuple((self.served_model_name or usual_name(self.model)).split(","))

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Servers that are its instances."""
        return tuple(self.upstream.split(",")) if self.upstream else ()

    @property
    def instances_wanted(self) -> int:
        """Instances that it starts with."""
        return len(self.upstreams) or self.instances

    def _fit_vllm(self) -> None:
        for name in _NATIVE_ONLY:
            if getattr(self, name) not in (None, type(self).model_fields[name].default):
                raise ValueError(f"{name} is for TidePipe's own stage workers, not for --engine vllm")
        if self.provisioner == "ray" and "distributed_executor_backend" in (self.engine_args or ""):
            raise ValueError(
                "provisioner ray places whole engines: leave distributed_executor_backend out of "
                "--engine-args, or, for one engine over several nodes, leave out --provisioner ray"
            )

    @property
    def stage_threads(self) -> int:
        """Compute threads of one stage worker: the machine's cores, evenly."""
        return self.threads or max(1, (os.cpu_count() or 1) // (self.stages * self.instances))


def default_text(name: str) -> str:
    """What is used without a setting, for people; of what is left to a service the service's default."""
    models: tuple[type[Strict], ...] = (
        ClusterConfig,
        StageWorkerSettings,
        ControllerSettings,
        RouterSettings,
    )
    found = (settings_of(model)[name] for model in models if name in model.model_fields)
    return next((text for one in found if (text := one.default_text)), "")

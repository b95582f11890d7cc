"""Definitions of settings that several models have: type, range and help of each, here alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from tidepipe_common.device_name import DEVICES, is_device
from tidepipe_common.dialects import check_reasoning_parser, dialect_named
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_STORED_BYTES
from tidepipe_common.model_names import served_names
from tidepipe_common.numerals import MAX_COUNT
from tidepipe_common.security import credentials
from tidepipe_common.settings import defaults
from tidepipe_common.settings.adapters import parse_adapters
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.offload import parse_offload


def _named(value: Any) -> Any:
    if value == "":
        # An unset variable of a shell: as a path it would be the folder in which the process was started.
        raise ValueError("must not be empty")
    return value


def _split(value: str | None) -> str | None:
    if value and re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5})*", value) is None:
        raise ValueError("must be numbers such as 16,14")
    return value


def _names(value: str | None) -> str | None:
    return value and ",".join(served_names(value))


def _offload(value: str) -> str:
    parse_offload(value)
    return value


def _adapters(value: str) -> str:
    parse_adapters(value)
    return value


def _mix(value: str) -> str:
    if re.fullmatch(r"[1-9][0-9]{0,8}:[1-9][0-9]{0,8}(:[0-9]{1,9})?", value) is None:
        raise ValueError("must be two numbers such as 2:1, or three such as 2:1:1600")
    return value


def _collector(value: str) -> str:
    if value and re.fullmatch(r"https?://[^/\s]+:[0-9]{1,5}/?", value) is None:
        raise ValueError("must be a collector's address such as http://127.0.0.1:4317")
    return value


def _tool_parser(name: str) -> str:
    try:
        dialect_named(name)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from None
    return name


def _reasoning_parser(name: str) -> str:
    try:
        check_reasoning_parser(name)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from None
    return name


def _device(value: str) -> str:
    if not is_device(value):
        raise ValueError(f"must be {DEVICES}")
    return value


NAMED = BeforeValidator(_named)
"""A path, unless it is empty."""
_PATHS: dict[str, Any] = {"strict": False}

# Of every service.
Listen = Annotated[
    str, setting("Address to serve at; port 0: a free one.", metavar="HOST:PORT", min_length=1)
]
MetricsPort = Annotated[
    int,
    setting(
        "Serve Prometheus metrics over HTTP on this port, on the host of --listen; 0: a free one.",
        metavar="P",
        otherwise="none",
        ge=0,
        le=65_535,
    ),
]

Otlp = Annotated[
    str,
    AfterValidator(_collector),
    setting(
        "Collector of OpenTelemetry that gets a span of each request, by OTLP over gRPC.",
        metavar="http://HOST:PORT",
        otherwise="none",
    ),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], setting("Least level of what is logged.", metavar="L")
]
TlsCertificate = Annotated[
    Path, NAMED, setting("Own certificate, PEM.", environment=credentials.CERT, **_PATHS)
]
TlsKey = Annotated[Path, NAMED, setting("Its key, PEM.", environment=credentials.KEY, **_PATHS)]
TlsAuthority = Annotated[
    Path, NAMED, setting("Whose certificates to trust, PEM.", environment=credentials.CA, **_PATHS)
]
TokenFile = Annotated[
    Path, NAMED, setting("File with the services' token.", environment=credentials.TOKEN, **_PATHS)
]
TlsClients = Annotated[
    Literal["certificate", "bearer"], setting("What to ask callers for.", environment=credentials.CLIENTS)
]
TlsUnneeded = Annotated[
    bool, setting("Listen beyond this machine without TLS.", environment=credentials.INSECURE)
]

# Of a model and the stages that compute it.
Model = Annotated[
    str, setting("Folder, .gguf file, pulled model's name or hub id.", metavar="M", min_length=1)
]
ServedModelName = Annotated[
    str,
    AfterValidator(_names),
    setting(
        "Names by which clients ask for the model, the first one before its aliases.",
        metavar="A,B,..",
        otherwise="that of its folder or file",
        min_length=1,
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], setting("Type of the weights.", metavar="D")
]
Quantization = Annotated[
    Literal["int8"],
    setting("Of weights, activations and KV cache.", metavar="Q", otherwise="none"),
]
ModelCode = Annotated[
    Literal["auto", "native", "transformers"],
    setting(
        "Whose code computes the model; auto: TidePipe's own for the families that it has, else the "
        "transformers library's.",
        metavar="C",
    ),
]
Device = Annotated[str, AfterValidator(_device), setting(f"{DEVICES}.", metavar="D")]
Fabric = Annotated[
    Literal["nccl", "gloo"],
    setting(
        "Activations to neighbours on the same host go by nccl (GPUs) or gloo.",
        metavar="F",
        otherwise="by gRPC",
    ),
]
Executor = Annotated[
    Literal["torch", "emulated"], setting("What computes; emulated sleeps by --profile.", metavar="E")
]
Engine = Annotated[
    Literal["native", "vllm"],
    setting("What computes: stage workers of TidePipe's own, or vLLM, which must be installed.", metavar="E"),
]
TensorParallel = Annotated[
    int, setting("With --engine vllm: devices that share each layer.", metavar="T", ge=1, le=64)
]
EngineArgs = Annotated[
    str,
    setting(
        "With --engine vllm: more arguments of its engine, a JSON object of EngineArgs' names.",
        metavar="JSON",
        otherwise="none",
    ),
]
Profile = Annotated[
    Path, NAMED, setting("CSV of tokens in a batch and ms of the whole model.", metavar="FILE", **_PATHS)
]
Hardware = Annotated[
    str, setting("Device to model or emulate: L20, A100, A800 or H100.", metavar="NAME", otherwise="L20")
]
NetworkGbit = Annotated[
    float,
    setting(
        "With --executor emulated: link on which KV blocks go from a stage to other instances, and come, "
        "Gbit/s each. On 127.0.0.1 without TLS each instance is a node then.",
        metavar="X",
        otherwise="as fast as the device's own link",
        gt=0,
        le=1e6,
    ),
]
Threads = Annotated[
    int,
    setting("Compute threads of a stage.", otherwise="all cores, evenly", ge=1, le=defaults.MOST_THREADS),
]
MemoryGib = Annotated[
    float,
    setting("Memory of a stage for weights and KV blocks, GiB.", otherwise="what is free", gt=0, le=1e6),
]
KvOffload = Annotated[
    str,
    AfterValidator(_offload),
    setting(
        "Second tier of a stage for evicted KV blocks: a file; with a GPU page-locked memory, without DIR.",
        metavar="SIZE[:DIR]",
        otherwise="none",
    ),
]
Lora = Annotated[
    str,
    AfterValidator(_adapters),
    setting(
        "Adapter (LoRA) that requests choose by NAME as their model: PEFT's folder.",
        metavar="NAME=FOLDER",
        otherwise="none",
        repeatable=True,
        min_length=1,
    ),
]
AllowDownload = Annotated[bool, setting("Fetch a hub id that is not on this machine.")]

# Of an instance's scheduler.
Policy = Annotated[defaults.Policy, setting("Scheduling policy.", metavar="P")]
BlockSize = Annotated[int, setting("Tokens per KV block.", ge=1, le=defaults.MAX_BLOCK_SIZE)]
KvBlocks = Annotated[int, setting("KV blocks of a stage; 0: what its memory allows.", ge=0, le=MAX_COUNT)]


def check_layer_split(text: str, stages: int) -> None:
    """ValueError unless it has a number for each stage; whether these fit the model is for later."""
    if len(text.split(",")) != stages:
        raise ValueError(f"layer_split '{text}' must name {stages} numbers, one per stage")


LayerSplit = Annotated[
    str,
    AfterValidator(_split),
    setting("Layers of each stage, such as 16,14.", metavar="A,B,..", otherwise="by cost"),
]
TokenMixText = Annotated[
    str,
    AfterValidator(_mix),
    setting(
        "Tokens of a typical prompt and output, and of the context, to split layers by.", metavar="P:O[:C]"
    ),
]
PrefillTokens = Annotated[
    int,
    setting("Tokens of a step with prompts at most; 0: by policy.", ge=0, le=defaults.MAX_STEP_TOKENS),
]
MaxSequences = Annotated[
    int, setting("Sequences accepted by an instance at most; 0: by policy.", ge=0, le=2**20)
]
MaxRunning = Annotated[
    int,
    setting("Sequences with KV blocks at a time at most; 0: any number.", ge=0, le=defaults.MAX_STEP_TOKENS),
]
Reserve = Annotated[
    float,
    setting(
        "Share of the KV blocks that the forecast peak leaves free at least; below 0 overcommits memory.",
        otherwise="by policy",
        ge=-100,
        le=0.9,
    ),
]
PolicySettings = Annotated[
    str,
    setting(
        "The policy's own, such as token_budget=384 or extra_batches=1.",
        metavar="NAME=VALUE,..",
    ),
]
PrefixCaching = Annotated[
    Literal["on", "off"],
    setting("Keep KV blocks, and share them among requests that begin alike.", metavar="on|off"),
]
LengthSignal = Annotated[
    Literal["on", "off"],
    setting(
        "Stages tell the predictor what the model's state behind a prompt says of its answer's length.",
        metavar="on|off",
    ),
]
KvTransfer = Annotated[
    Literal["auto", "always", "never"],
    setting(
        "KV blocks that a sequence of another instance comes with are fetched where that is quicker than "
        "computing them, always where it can be, or never.",
        metavar="auto|always|never",
    ),
]
Microbatches = Annotated[
    int, setting("Decode micro-batches in flight, always; 0: as the policy likes.", ge=0, le=32)
]
JournalPath = Annotated[
    Path,
    NAMED,
    setting(
        "Folder, or .jsonl file, for a journal of every event, see `tidepipe sim journal`.",
        metavar="DIR",
        **_PATHS,
    ),
]

# Of a router, and of what it asks.
Routing = Annotated[defaults.Routing, setting("Where requests go.", metavar="R")]
ToolParser = Annotated[
    str,
    AfterValidator(_tool_parser),
    setting(
        "How the model writes its thoughts and calls of tools: a family such as hermes, llama3-json or "
        "harmony; auto: as its chat template says; off: answers are words only.",
        metavar="NAME",
    ),
]
ReasoningParser = Annotated[
    str,
    AfterValidator(_reasoning_parser),
    setting(
        "How the model writes its thoughts, where that is not as the family of --tool-parser does: a family "
        "such as qwen3, mistral or seed-oss; auto: as its chat template says; off: thoughts are words.",
        metavar="NAME",
    ),
]
PoolingName = Annotated[
    Literal["auto", "mean", "last", "cls", "off"],
    setting(
        "How the hidden states of a text become its vector (/v1/embeddings, /v1/rerank): their mean, the "
        "last or the first (cls) token's; auto: as 1_Pooling/config.json says, else the last "
        "one's; off: there are no vectors.",
        metavar="P",
    ),
]
SharePrefixes = Annotated[
    bool,
    setting(
        "Requests of different API keys share computed beginnings, too: whoever asks can tell by the time "
        "whether others have asked the same."
    ),
]
LengthModel = Annotated[
    Path,
    NAMED,
    setting(
        "Length model to begin with (`tidepipe predictor train`).", metavar="DIR", otherwise="none", **_PATHS
    ),
]
TtftMs = Annotated[float, setting("TTFT target of requests that name none.", metavar="MS", gt=0, lt=1e6)]
TpotMs = Annotated[float, setting("TPOT target of requests that name none.", metavar="MS", gt=0, lt=1e6)]
MacroMin = Annotated[int, setting("Instances that a new macro instance begins with.", ge=1, le=MAX_COUNT)]
MacroMax = Annotated[
    int, setting("Instances of a macro instance at most; one more splits it.", ge=1, le=MAX_COUNT)
]
PrefillInstances = Annotated[
    int,
    setting(
        "Under --routing roles or auto: so many instances compute prompts and nothing else, the others "
        "decode; 0: shares move by themselves. Under arrow: so many begin with prompts. Under taichi: so "
        "many have settings of their own.",
        metavar="P",
        ge=0,
        le=MAX_COUNT,
    ),
]
ScalingStartS = Annotated[
    float,
    setting(
        "What automatic scaling takes an instance to need for its start, until it has seen some.",
        metavar="S",
        gt=0,
        lt=1e6,
    ),
]
MaxPending = Annotated[int, setting("Answers that may wait for an instance.", ge=1, le=MAX_COUNT)]
DataDir = Annotated[str, setting("Folder that keeps files and batches of the HTTP API.", metavar="DIR")]
ApiKeys = Annotated[
    Path, NAMED, setting("Clients need one of these keys (`tidepipe keys add`).", metavar="FILE", **_PATHS)
]
FilesMaxBytes = Annotated[
    int,
    setting(
        "Of all files of the HTTP API together, answers of batches included.",
        otherwise=f"{defaults.FILES_BYTES >> 30} GiB",
        ge=1,
        le=MAX_STORED_BYTES,
    ),
]
MaxStoredBytesPerKey = Annotated[
    int,
    setting(
        "Of files, batches and responses of an API key that names no limit of its own.",
        otherwise="half of --files-max-bytes",
        ge=1,
        le=MAX_STORED_BYTES,
    ),
]
MaxStoredItemsPerKey = Annotated[int, setting("How many of these, likewise.", ge=1, le=MAX_COUNT)]
FilesExpireDays = Annotated[
    float,
    setting("Lifetime of files that bring none (expires_after); 0: for ever.", metavar="DAYS", ge=0, lt=1e5),
]
ResponsesMaxBytes = Annotated[
    int,
    setting(
        "Of all responses that are kept (/v1/responses), half of it of one API key; beyond that those go "
        "first that were not gone on from for longest.",
        otherwise=f"{defaults.RESPONSES_BYTES >> 30} GiB",
        ge=1,
        le=MAX_STORED_BYTES,
    ),
]
ResponsesMaxCount = Annotated[int, setting("How many of these, likewise.", ge=2, le=MAX_COUNT)]
ResponsesExpireDays = Annotated[
    float, setting("Lifetime of a response; 0: for ever.", metavar="DAYS", ge=0, lt=1e5)
]
ResponsesBackground = Annotated[
    int, setting("Responses in the background that wait or run.", ge=1, le=MAX_COUNT)
]
ResponsesBackgroundPerKey = Annotated[
    int, setting("Of these, of one API key.", otherwise="half", ge=1, le=MAX_COUNT)
]
ResponsesBackgroundBytes = Annotated[
    int,
    setting(
        "Prompts of these, in memory.",
        otherwise=f"{defaults.BACKGROUND_RESPONSE_BYTES >> 20} MiB",
        ge=1,
        le=MAX_STORED_BYTES,
    ),
]
AllowHost = Annotated[
    str,
    setting(
        "Names by which the HTTP API is called too, with commas; *.NAME: all below it.",
        metavar="H,..",
        repeatable=True,
        min_length=1,
    ),
]
AllowOrigin = Annotated[
    str,
    setting(
        "Sites whose pages may call the HTTP API from a browser, such as https://chat.example.com.",
        metavar="O,..",
        repeatable=True,
        min_length=1,
    ),
]
MaxConnections = Annotated[
    int,
    setting("HTTP connections at a time.", otherwise="by the limit of open files", ge=1, le=MAX_COUNT),
]

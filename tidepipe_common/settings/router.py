"""The settings of a router."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from tidepipe_common.descriptors import REQUESTS
from tidepipe_common.dialects import AUTO
from tidepipe_common.model_names import usual_name
from tidepipe_common.numerals import MAX_COUNT
from tidepipe_common.settings import defaults, fields
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.service import ServiceSettings
from tidepipe_common.types.text_choices import TextChoices


def _tokenizers(value: str | None) -> str | None:
    if value is not None and not all(all(part.partition("=")) for part in value.split(",")):
        raise ValueError("must be NAME=M, such as small=/models/small")
    return value


class RouterSettings(ServiceSettings):
    """Takes requests and spreads them over instances."""

    service: ClassVar[str] = "router"

    model: fields.Model
    served_model_name: fields.ServedModelName | None = None
    model_name: Annotated[
        str, setting("One name, as --served-model-name.", metavar="NAME", otherwise="the model's")
    ] = ""
    tokenizer: Annotated[
        str | None,
        AfterValidator(_tokenizers),
        setting(
            "Where the tokenizer of another model is that instances bring.",
            metavar="NAME=M",
            otherwise="where the instance has it",
            repeatable=True,
            min_length=1,
        ),
    ] = None
    tool_parser: fields.ToolParser = AUTO
    reasoning_parser: fields.ReasoningParser = AUTO
    pooling: fields.PoolingName = "auto"
    http: Annotated[
        str, setting("Address of the OpenAI-compatible API.", metavar="HOST:PORT", otherwise="none")
    ] = ""
    overall: Annotated[
        str, setting("Router above: be one of its instances.", metavar="HOST:PORT", otherwise="none")
    ] = ""
    advertise: Annotated[
        str, setting("Where it reaches us.", metavar="HOST:PORT", otherwise="that of --listen")
    ] = ""
    name: Annotated[str, setting("Our name there.", metavar="NAME", otherwise="one of our own")] = ""
    provisioner: Annotated[str, setting("Starts and stops instances.", metavar="HOST:PORT")] = ""
    predictor: Annotated[str, setting("Shown in the cluster's status.", metavar="HOST:PORT")] = ""
    max_requests: Annotated[int, setting("Requests accepted at a time.", ge=1, le=MAX_COUNT)] = REQUESTS
    max_pending: fields.MaxPending = REQUESTS
    routing: fields.Routing = defaults.USUAL_ROUTING
    prefill_instances: fields.PrefillInstances = 0
    share_prefixes: fields.SharePrefixes = False
    ttft_ms: fields.TtftMs = 1000 * defaults.TTFT_S
    tpot_ms: fields.TpotMs = 1000 * defaults.TPOT_S
    macro_min: fields.MacroMin = defaults.MACRO_MIN
    macro_max: fields.MacroMax = defaults.MACRO_MAX
    scaling_start_s: fields.ScalingStartS = defaults.SCALING_START_S
    remember_s: Annotated[
        float, setting("How long an ended request can be asked for.", metavar="S", gt=0, lt=1e6)
    ] = 120.0
    take_over: Annotated[bool, setting("Of a router that listens here; SIGUSR1 then tells it to leave.")] = (
        False
    )
    drain_s: Annotated[
        float,
        setting("How long answers may go on after another router has taken over.", metavar="S", gt=0, lt=1e6),
    ] = 600.0
    data_dir: fields.DataDir = ""
    batch_concurrency: Annotated[
        int, setting("Requests of batches in flight at most.", ge=1, le=MAX_COUNT)
    ] = 256
    files_max_bytes: fields.FilesMaxBytes = defaults.FILES_BYTES
    max_stored_bytes_per_key: fields.MaxStoredBytesPerKey | None = None
    max_stored_items_per_key: fields.MaxStoredItemsPerKey = defaults.STORED_ITEMS
    files_expire_days: fields.FilesExpireDays = defaults.FILES_LIFETIME_S / 86_400
    responses_max_bytes: fields.ResponsesMaxBytes = defaults.RESPONSES_BYTES
    responses_max_count: fields.ResponsesMaxCount = defaults.RESPONSES_COUNT
    responses_expire_days: fields.ResponsesExpireDays = defaults.FILES_LIFETIME_S / 86_400
    responses_background: fields.ResponsesBackground = defaults.BACKGROUND_RESPONSES
    responses_background_per_key: fields.ResponsesBackgroundPerKey | None = None
    responses_background_bytes: fields.ResponsesBackgroundBytes = defaults.BACKGROUND_RESPONSE_BYTES
    allow_host: fields.AllowHost | None = None
    allow_origin: fields.AllowOrigin | None = None
    max_connections: fields.MaxConnections | None = None
    max_connections_per_address: Annotated[
        int | None,
        setting(
            "Of these, from one address.",
            otherwise="half, and all from this machine",
            ge=1,
            le=MAX_COUNT,
        ),
    ] = None
    api_keys: fields.ApiKeys | None = None
    patience_s: Annotated[
        float,
        setting("How long a request waits while there is no instance at all.", metavar="S", gt=0, lt=1e6),
    ] = 60.0
    stop_grace_s: Annotated[
        float,
        setting("How long answers may go on after the process was told to stop.", metavar="S", gt=0, lt=1e6),
    ] = 10.0

    @property
    def served_names(self) -> tuple[str, ...]:
        """That clients use: those given, or the model's usual one."""
        if self.served_model_name:
            return tuple(self.served_model_name.split(","))
        return (self.model_name or usual_name(self.model),)

    @property
    def text_choices(self) -> TextChoices:
        """How the text of models is read whose instances say nothing else."""
        return TextChoices(self.tool_parser, self.reasoning_parser, self.pooling)

    @property
    def tokenizers(self) -> dict[str, str]:
        """Where those of other models are, by name."""
        pairs = (part.partition("=") for part in self.tokenizer.split(",")) if self.tokenizer else ()
        return {name: place for name, _, place in pairs}

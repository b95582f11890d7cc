"""What an instance tells its router of its model, beside what the model is."""

from __future__ import annotations

from typing import Annotated

from tidepipe_common.settings import fields
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.service import ServiceSettings


class InstanceSettings(ServiceSettings):
    """Of every kind of instance."""

    instance_id: Annotated[str, setting("Name of the instance.", metavar="NAME")] = "instance-0"
    served_model_name: fields.ServedModelName | None = None
    ttft_ms: fields.TtftMs | None = None
    tpot_ms: fields.TpotMs | None = None
    tool_parser: fields.ToolParser | None = None
    reasoning_parser: fields.ReasoningParser | None = None
    pooling: fields.PoolingName | None = None
    provisioner: Annotated[
        str | None,
        setting("Starts and stops instances of this model.", metavar="HOST:PORT", otherwise="the router's"),
    ] = None

    @property
    def served_names(self) -> tuple[str, ...]:
        """Names by which clients ask for its model; empty: the usual one."""
        return tuple(self.served_model_name.split(",")) if self.served_model_name else ()

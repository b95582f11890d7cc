"""The settings of a controller."""

from __future__ import annotations

from typing import Annotated, ClassVar

from tidepipe_common.settings import defaults, fields
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.service import ServiceSettings
from tidepipe_common.types.token_mix import TokenMix


class ControllerSettings(ServiceSettings):
    """The brain of one instance: it plans the steps of its stage workers."""

    service: ClassVar[str] = "controller"

    stages: Annotated[
        str, setting("Address of each stage worker, first to last.", metavar="HOST:PORT,..", min_length=1)
    ]
    advertise: Annotated[
        str, setting("Address for the router.", metavar="HOST:PORT", otherwise="that of --listen")
    ] = ""
    instance_id: Annotated[str, setting("Name of the instance.", metavar="NAME")] = "instance-0"
    router: Annotated[str | None, setting("Router to register at.", metavar="HOST:PORT")] = None
    predictor: Annotated[str | None, setting("Length predictor to ask.", metavar="HOST:PORT")] = None
    policy: fields.Policy = "auto"
    profile: fields.Profile | None = None
    hardware: Annotated[
        fields.Hardware | None,
        setting(
            "Device to model: L20, A100, A800 or H100.", metavar="NAME", otherwise="what the stages run on"
        ),
    ] = None
    block_size: fields.BlockSize = defaults.BLOCK_SIZE
    kv_blocks: fields.KvBlocks = 0
    layer_split: fields.LayerSplit = ""
    token_mix: fields.TokenMixText = str(TokenMix())
    prefill_tokens: fields.PrefillTokens = 0
    max_sequences: fields.MaxSequences = 0
    max_running: fields.MaxRunning = 0
    reserve: fields.Reserve | None = None
    policy_settings: fields.PolicySettings = ""
    microbatches: fields.Microbatches = 0
    prefix_caching: fields.PrefixCaching = "on"
    journal: fields.JournalPath | None = None

    @property
    def stage_addresses(self) -> tuple[str, ...]:
        """HOST:PORT of each."""
        return tuple(part for part in self.stages.split(",") if part)

    @property
    def layers(self) -> tuple[int, ...]:
        """Of each stage; empty: by cost."""
        return tuple(int(part) for part in self.layer_split.split(",") if part)

"""The settings of a controller."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from tidepipe_common.settings import defaults, fields
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.instance import InstanceSettings
from tidepipe_common.types.token_mix import TokenMix


class ControllerSettings(InstanceSettings):
    """The brain of one instance: it plans the steps of its stage workers."""

    service: ClassVar[str] = "controller"

    stages: Annotated[
        str,
        setting(
            "Address of each stage worker, first to last; with --engine vllm how many stages it makes.",
            metavar="HOST:PORT,..|S",
            min_length=1,
        ),
    ]
    engine: fields.Engine = "native"
    model: Annotated[fields.Model | None, setting("With --engine vllm: what it loads.", metavar="M")] = None
    dtype: fields.Dtype = "auto"
    tensor_parallel: fields.TensorParallel = 1
    engine_args: fields.EngineArgs = ""
    allow_download: fields.AllowDownload = False
    machine_share: Annotated[
        str,
        setting(
            "With --engine vllm: this is instance I of N that share the machine's devices, from 0.",
            metavar="I/N",
            otherwise="it has all",
            pattern=r"^[0-9]{1,4}/[1-9][0-9]{0,3}$",
        ),
    ] = "0/1"
    advertise: Annotated[
        str, setting("Address for the router.", metavar="HOST:PORT", otherwise="that of --listen")
    ] = ""
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
    kv_transfer: fields.KvTransfer = "auto"
    length_signal: fields.LengthSignal = "on"
    journal: fields.JournalPath | None = None

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.engine == "native":
            chosen = [
                name for name in ("model", "tensor_parallel", "engine_args") if name in self.model_fields_set
            ]
            if chosen:
                flag = "--" + chosen[0].replace("_", "-")
                raise ValueError(f"{flag} is for --engine vllm; stage workers know their model themselves")
            return self
        if re.fullmatch(r"[1-9][0-9]?", self.stages) is None:
            raise ValueError(f"with --engine vllm stages is a number such as 2, got '{self.stages}'")
        if self.model is None:
            raise ValueError("with --engine vllm the controller loads the model itself: give --model")
        if self.layer_split:
            fields.check_layer_split(self.layer_split, int(self.stages))
        return self

    @property
    def share(self) -> tuple[int, int]:
        """Which instance of how many on this machine."""
        index, _, count = self.machine_share.partition("/")
        return int(index), int(count)

    @property
    def stage_addresses(self) -> tuple[str, ...]:
        """HOST:PORT of each."""
        return tuple(part for part in self.stages.split(",") if part)

    @property
    def layers(self) -> tuple[int, ...]:
        """Of each stage; empty: by cost."""
        return tuple(int(part) for part in self.layer_split.split(",") if part)

"""The settings of a stage worker."""

from __future__ import annotations

from typing import Annotated, ClassVar

from tidepipe_common.numerals import MAX_COUNT
from tidepipe_common.settings import fields
from tidepipe_common.settings.definition import setting
from tidepipe_common.settings.service import ServiceSettings


class StageWorkerSettings(ServiceSettings):
    """One worker for one device: it computes some layers of a model, as its controller says."""

    service: ClassVar[str] = "stage_worker"

    model: fields.Model
    device: fields.Device = "auto"
    dtype: fields.Dtype = "auto"
    quantization: fields.Quantization | None = None
    model_code: fields.ModelCode = "auto"
    threads: fields.Threads | None = None
    memory_gib: fields.MemoryGib | None = None
    kv_offload: fields.KvOffload | None = None
    lora: fields.Lora | None = None
    workers_on_device: Annotated[
        int, setting("Stage workers that share this GPU's memory.", ge=1, le=MAX_COUNT)
    ] = 1
    fabric: fields.Fabric | None = None
    executor: fields.Executor = "torch"
    profile: fields.Profile | None = None
    hardware: fields.Hardware = "l20"
    network_gbit: fields.NetworkGbit | None = None
    allow_download: fields.AllowDownload = False

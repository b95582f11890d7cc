"""A profile that `tidepipe profile` has kept for such a cluster, if there is one."""

from __future__ import annotations

from pathlib import Path

from launcher.config import ClusterConfig
from tidepipe_common.latency.kept_profile import Measured, kept_profile


def with_kept_profile(config: ClusterConfig, model: Path) -> ClusterConfig:
    """The same settings, with the profile that was measured for them. model: where it was found.

    Only for real workers: emulated ones take what they are told to be.
    """
    if config.profile is not None or config.executor != "torch":
        return config
    stages = config.stages * config.instances
    path = kept_profile(
        Measured(
            str(model.resolve()),
            config.device,
            config.dtype,
            config.quantization,
            config.stage_threads,
            stages,
        )
    )
    return config.model_copy(update={"profile": str(path)}) if path.is_file() else config

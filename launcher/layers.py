"""What is wrong with a model, or with how it is to be split, seen before a process is started."""

from __future__ import annotations

from pathlib import Path

from launcher.config import ClusterConfig
from tidepipe_common.errors import ConfigError


def check_model(config: ClusterConfig, model: Path) -> None:
    """ModelError if its configuration cannot be run; ConfigError if it cannot be split as asked.

    model: where it was found. A stage worker would refuse it in the same words, beside a router that is about
    something else.
    """
    # Late: other commands do without.
    from stage_worker.loading.model_spec import read_spec

    layers = read_spec(model).layers
    if config.stages > layers:
        raise ConfigError(
            f"{config.model} has {layers} layers, and each stage needs one: --stages can be 1 to {layers}, "
            f"not {config.stages}"
        )
    if config.layer_split is not None:
        from controller.scheduler.split import given_split

        given_split([int(count) for count in config.layer_split.split(",")], layers, config.stages)

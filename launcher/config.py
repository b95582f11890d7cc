"""Settings of a local cluster: from flags, from a TOML file, or from both (flags win)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tidepipe_common.errors import ConfigError
from tidepipe_common.regular_files import open_file
from tidepipe_common.settings.cluster import ClusterConfig
from tidepipe_common.settings.definition import refusal, settings_of

__all__ = ["ClusterConfig", "load_config"]


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
        raise ConfigError("no model given; name one with --model (`tidepipe model list` says which are here)")
    try:
        config = ClusterConfig.model_validate(settings)
    except ValidationError as error:
        where = f" (in {file} or as a flag)" if file else ""
        called = {} if file else {name: one.flag for name, one in settings_of(ClusterConfig).items()}
        raise ConfigError(f"{refusal(error, ClusterConfig, called)}{where}") from error
    _check_policy_settings(config)
    _check_profile(config)
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        with open_file(file) as source:
            return tomllib.load(source)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except RecursionError:
        raise ConfigError(f"{file} is not usable TOML: nested too deeply") from None
    except ValueError as error:  # integers with thousands of digits as well
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _check_profile(config: ClusterConfig) -> None:
    if config.profile is not None and config.provisioner == "local":
        # Late, as above. Services read it again, and elsewhere they alone can.
        from tidepipe_common.latency.profile_file import read_profile

        read_profile(config.profile)


def _check_policy_settings(config: ClusterConfig) -> None:
    if config.prefill_policy_settings and not config.prefill_instances:
        raise ConfigError("--prefill-policy-settings: say of how many instances with --prefill-instances")
    for name in ("policy_settings", "prefill_policy_settings"):
        if settings := getattr(config, name):
            # Late: what only names a cluster need not load the scheduler.
            from controller.scheduler.policies.catalog import parse_knobs

            try:
                parse_knobs(settings, config.policy)
            except ConfigError as error:
                raise ConfigError(f"--{name.replace('_', '-')}: {error}") from error

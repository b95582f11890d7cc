"""What starts a planned cluster is taken by what it is for."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import pytest
import typer
import yaml

from launcher.config import load_config
from tidepipe.cli.cluster_options import CLUSTER_OPTIONS
from tidepipe.cli.main import app
from tidepipe.cli.plan_start import Deployment, commands, compose
from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.cluster import ClusterConfig
from tidepipe_common.settings.command_line import parse_settings
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.predictor import PredictorSettings
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.settings.service import ServiceSettings
from tidepipe_common.settings.stage_worker import StageWorkerSettings

SERVICES: dict[str, type[ServiceSettings]] = {
    "stage_worker": StageWorkerSettings,
    "controller": ControllerSettings,
    "predictor": PredictorSettings,
    "router": RouterSettings,
}
TOLD = """
told() { local line; line=$(printf "%s\\t" "$@"); echo "$line"; }
tidepipe() { told "$@"; }
python() { told "$@"; }
"""


def _lines(script: str) -> list[list[str]]:
    """The arguments of each command of the script, as a shell sees them."""
    run = subprocess.run(["bash", "-c", f"{TOLD}{script}\nwait"], capture_output=True, text=True, check=True)
    assert not run.stderr, run.stderr
    return [line.rstrip("\t").split("\t") for line in run.stdout.splitlines()]


def _config(arguments: list[str]) -> ClusterConfig:
    command: Any = typer.main.get_command(app)
    name, *rest = arguments
    given = command.commands[name].make_context(name, rest).params
    return load_config(None, {flag: given[flag] for flag in CLUSTER_OPTIONS if given.get(flag)})


def test_one_node_is_one_command() -> None:
    """Flags are those of the policy, its settings and the targets."""
    cluster = Deployment(2, 1, 3, 8, "padg", {"token_budget": 512}, "", (5000, 100), "smollm2-135m")
    (line,) = _lines(commands(cluster))
    config = _config(line)
    assert (config.stages, config.instances, config.policy) == (2, 3, "padg")
    assert (config.policy_settings, config.ttft_ms, config.tpot_ms) == ("token_budget=512", 5000, 100)
    assert cluster.nodes == 1
    (odd,) = _lines(commands(replace(cluster, model="a b;$(exit 3)${NODE1}")))
    assert "a b;$(exit 3)${NODE1}" in odd
    (batch,) = _lines(commands(Deployment(1, 2, 4, 8, "auto", {}), ("IN", "OUT")))
    assert batch[:4] == ["batch", "IN", "-o", "OUT"]
    assert (_config(batch).engine, _config(batch).tensor_parallel) == ("vllm", 2)


def test_each_node_has_a_command_of_its_own() -> None:
    """The others join the first one's router; nothing is left out, nothing twice."""
    cluster = Deployment(1, 4, 13, 8, "hybrid", {}, "least-loaded", (5000, 100))
    certificates, *starts = _lines(commands(cluster))
    assert certificates.count("--host") == cluster.nodes == 7
    configs = [_config(line) for line in starts]
    assert [config.instances for config in configs] == [2] * 6 + [1]
    assert [config.router for config in configs] == [None] + ["10.0.0.1:7070"] * 6
    assert (configs[0].routing, configs[0].macro_max) == ("least-loaded", 13)
    assert len({config.host for config in configs}) == 7


def test_instances_over_several_nodes_are_started_by_hand() -> None:
    """Every stage has a worker of its own, and each service takes its flags."""
    _, *lines = _lines(commands(Deployment(12, 1, 2, 8, "padg", {"token_budget": 512}, "", (5000, 100))))
    found: dict[str, list[Any]] = {name: [] for name in SERVICES}
    for line in lines:
        assert line[0] == "-m"
        found[line[1]].append(parse_settings(SERVICES[line[1]], line[2:], {}))
    assert {name: len(each) for name, each in found.items()} == {
        "stage_worker": 24, "controller": 2, "predictor": 1, "router": 1,
    }  # fmt: skip
    stages = ",".join(one.stages for one in found["controller"]).split(",")
    assert sorted(stages) == sorted(one.listen for one in found["stage_worker"])
    assert len(set(stages)) == 24
    assert found["router"][0].ttft_ms == 5000


def test_compose_files_are_the_deployment_with_other_instances() -> None:
    """Each command is taken by its service, each stage has a device, networks and secrets are there."""
    text = compose(Deployment(2, 1, 3, 8, "padg", {"token_budget": 512}, "prefix", (4000, 80)))
    file = yaml.safe_load(text)
    services = file["services"]
    settings: dict[str, Any] = {}
    for name, service in services.items():
        command = service.get("command", [""])[name == "router" :]
        if command[0] in SERVICES:
            settings[name] = parse_settings(SERVICES[command[0]], command[1:], {})
        assert set(service["networks"]) <= set(file["networks"])
        wanted = {one if isinstance(one, str) else one["source"] for one in service["secrets"]}
        assert wanted <= set(file["secrets"])
        assert service["read_only"] is True
    assert settings["router"].ttft_ms == 4000
    controllers = [one for name, one in settings.items() if name.startswith("controller")]
    stages = [stage.split(":")[0] for one in controllers for stage in one.stages.split(",")]
    assert stages == [f"worker-{one}-{stage}" for one in range(3) for stage in range(2)]
    assert {one.policy_settings for one in controllers} == {"token_budget=512"}
    devices = [
        services[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for name in stages
    ]
    assert devices == [[str(number)] for number in range(6)]
    assert all(set(services[f"controller-{n}"]["depends_on"]) <= set(services) for n in range(3))
    assert not {"controller-a", "worker-b-1"} & set(services)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [(Deployment(4, 1, 3, 8, "padg", {}), "needs 2"), (Deployment(1, 2, 1, 8, "padg", {}), "vLLM")],
)
def test_what_compose_cannot_be_is_said(cluster: Deployment, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(cluster)

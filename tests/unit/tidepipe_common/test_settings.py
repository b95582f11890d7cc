"""Settings of services: one definition each, whatever they are told by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from launcher.config import load_config
from tidepipe_common.errors import ConfigError
from tidepipe_common.rpc.lifecycle import READY_FD, settings_or_exit
from tidepipe_common.settings.cluster import ClusterConfig
from tidepipe_common.settings.command_line import arguments_of, parse_settings, variable_of
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.definition import Setting, settings_of
from tidepipe_common.settings.predictor import PredictorSettings
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.settings.service import ServiceSettings
from tidepipe_common.settings.stage_worker import StageWorkerSettings

MODELS: tuple[type[ServiceSettings], ...] = (
    ControllerSettings,
    StageWorkerSettings,
    RouterSettings,
    PredictorSettings,
)
REQUIRED = {
    ControllerSettings: ["--stages", "h:1"],
    StageWorkerSettings: ["--model", "m"],
    RouterSettings: ["--model", "m"],
    PredictorSettings: [],
}
EVERY = {
    "--listen": ("h:1", "h:1"),
    "--metrics-port": ("0", 0),
    "--tls-cert": ("c", Path("c")),
    "--tls-key": ("k", Path("k")),
    "--tls-ca": ("a", Path("a")),
    "--cluster-token": ("t", Path("t")),
    "--tls-clients": ("bearer", "bearer"),
    "--insecure": (None, True),
    "--log-level": ("debug", "debug"),
}
KNOWN: dict[type[ServiceSettings], dict[str, tuple[str | None, Any]]] = {
    ControllerSettings: {
        "--advertise": ("h:1", "h:1"),
        "--instance-id": ("i", "i"),
        "--stages": ("h:1,h:2", "h:1,h:2"),
        "--router": ("h:1", "h:1"),
        "--predictor": ("h:1", "h:1"),
        "--policy": ("padg-published", "padg-published"),
        "--profile": ("p.csv", Path("p.csv")),
        "--hardware": ("a100", "a100"),
        "--block-size": ("32", 32),
        "--kv-blocks": ("7", 7),
        "--layer-split": ("16,14", "16,14"),
        "--token-mix": ("7:1", "7:1"),
        "--prefill-tokens": ("128", 128),
        "--max-sequences": ("9", 9),
        "--max-running": ("8", 8),
        "--reserve": ("-0.5", -0.5),
        "--policy-settings": ("order=off", "order=off"),
        "--microbatches": ("3", 3),
        "--journal": ("j", Path("j")),
    },
    StageWorkerSettings: {
        "--model": ("org/name", "org/name"),
        "--device": ("cuda:1", "cuda:1"),
        "--dtype": ("bfloat16", "bfloat16"),
        "--quantization": ("int8", "int8"),
        "--threads": ("2", 2),
        "--memory-gib": ("1.5", 1.5),
        "--workers-on-device": ("2", 2),
        "--fabric": ("gloo", "gloo"),
        "--executor": ("emulated", "emulated"),
        "--profile": ("p.csv", Path("p.csv")),
        "--hardware": ("a100", "a100"),
        "--allow-download": (None, True),
    },
    RouterSettings: {
        "--model": ("m.gguf", "m.gguf"),
        "--model-name": ("n", "n"),
        "--http": ("h:1", "h:1"),
        "--overall": ("h:1", "h:1"),
        "--advertise": ("h:1", "h:1"),
        "--name": ("n", "n"),
        "--provisioner": ("h:1", "h:1"),
        "--predictor": ("h:1", "h:1"),
        "--max-requests": ("1", 1),
        "--max-pending": ("1", 1),
        "--routing": ("padg-shuffled", "padg-shuffled"),
        "--ttft-ms": ("1e3", 1000.0),
        "--tpot-ms": (".5", 0.5),
        "--macro-min": ("1", 1),
        "--macro-max": ("2", 2),
        "--scaling-start-s": ("1", 1.0),
        "--remember-s": ("1", 1.0),
        "--take-over": (None, True),
        "--drain-s": ("1", 1.0),
        "--data-dir": ("d", "d"),
        "--batch-concurrency": ("1", 1),
        "--files-max-bytes": ("17179869185", 2**34 + 1),
        "--files-expire-days": ("0", 0.0),
        "--allow-host": ("a,b", "a,b"),
        "--allow-origin": ("https://a", "https://a"),
        "--max-connections": ("1", 1),
        "--max-connections-per-address": ("1", 1),
        "--api-keys": ("k.db", Path("k.db")),
    },
    PredictorSettings: {
        "--window": ("32", 32),
        "--model": ("d", Path("d")),
        "--state": ("d", Path("d")),
        "--train-after": ("100", 100),
    },
}
"""Flags that have been told to users: each with a text, and what it means. None: it stands alone."""
BY_HAND = {"stages", "predictor", "provisioner", "cluster_token", "insecure"}
"""Names that mean one thing of a cluster and another of a service."""


def attribute(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


@pytest.mark.parametrize("model", MODELS)
def test_every_flag_that_was_ever_there_is_read(model: type[ServiceSettings]) -> None:
    for flag, (text, value) in {**EVERY, **KNOWN[model]}.items():
        found = parse_settings(model, [*REQUIRED[model], flag, *([] if text is None else [text])], {})
        assert getattr(found, attribute(flag)) == value, flag
        assert type(getattr(found, attribute(flag))) is type(value), flag


@pytest.mark.parametrize("model", MODELS)
def test_a_child_is_told_what_was_chosen_and_the_environment_the_rest(model: type[ServiceSettings]) -> None:
    """Arguments of settings give the same settings; a variable is as good as a flag, and weaker than it."""
    flags = {**EVERY, **KNOWN[model]}
    arguments = [part for flag, (text, _) in flags.items() for part in (flag, text) if part is not None]
    made = parse_settings(model, arguments, {})
    told = arguments_of(made)
    assert parse_settings(model, told, {}) == made
    assert arguments_of(parse_settings(model, REQUIRED[model], {})) == REQUIRED[model]
    dashed = parse_settings(model, [*REQUIRED[model], "--tls-cert=-c"], {})
    assert parse_settings(model, arguments_of(dashed), {}) == dashed
    named = settings_of(model)
    environment = {
        variable_of(model, named[attribute(flag)]): text or "yes" for flag, (text, _) in flags.items()
    }
    assert parse_settings(model, [], environment) == made
    environment = dict.fromkeys(environment, "neither number nor word")
    assert parse_settings(model, arguments, environment) == made


def test_a_flag_that_may_be_repeated_is_a_list() -> None:
    flags = ["--allow-host", "a.example,*.b.example", "--allow-host", "10.0.0.1"]
    assert parse_settings(RouterSettings, ["--model", "m", *flags], {}).allow_host == (
        "a.example,*.b.example,10.0.0.1"
    )


def test_variables_have_the_names_of_their_services() -> None:
    names = [variable_of(model, one) for model in MODELS for one in settings_of(model).values()]
    shared = {"TIDEPIPE_TLS_CERT", "TIDEPIPE_TLS_KEY", "TIDEPIPE_TLS_CA", "TIDEPIPE_CLUSTER_TOKEN_FILE"}
    shared |= {"TIDEPIPE_TLS_CLIENTS", "TIDEPIPE_INSECURE"}
    own = [name for name in names if name not in shared]
    assert len(own) == len(set(own)) and shared < set(names)
    assert "TIDEPIPE_CONTROLLER_PREFILL_TOKENS" in own and "TIDEPIPE_STAGE_WORKER_MEMORY_GIB" in own


def shape_of(one: Setting) -> tuple[Any, ...]:
    return one.kind, one.choices, one.numbers, one.metavar


def test_a_cluster_and_its_services_have_the_same_definitions() -> None:
    cluster, common = settings_of(ClusterConfig), 0
    for model in (ControllerSettings, StageWorkerSettings, RouterSettings):
        for name in (settings_of(model).keys() & cluster.keys()) - BY_HAND:
            assert shape_of(settings_of(model)[name]) == shape_of(cluster[name]), name
            common += 1
    assert common > 35


def first_wrong(setting: Setting) -> tuple[str, Any] | None:
    """A text that stands for a wrong value, and the value; None if every text is right."""
    if setting.numbers is None:
        return ("magic", "magic") if setting.choices else None
    wrong = setting.numbers.most if setting.numbers.below else setting.numbers.most + 1
    return (str(int(wrong)), int(wrong)) if setting.kind is int else (repr(float(wrong)), float(wrong))


def said(action: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        action(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model in MODELS for name in settings_of(model)]
)
def test_a_wrong_value_is_told_in_the_same_words(
    model: type[ServiceSettings], name: str, tmp_path: Path
) -> None:
    """By flag, variable, settings file and flag of `tidepipe up`."""
    setting = settings_of(model)[name]
    wrong = first_wrong(setting)
    if wrong is None:
        return
    text, value = wrong
    base = REQUIRED[model] if setting.flag not in REQUIRED[model] else []
    flag = said(parse_settings, model, [*base, setting.flag, text], {})
    problem = flag.removeprefix(setting.flag)
    assert problem.startswith(": ") and problem.endswith(f"got {value!r}")
    variable = variable_of(model, setting)
    assert said(parse_settings, model, base, {variable: text}) == variable + problem
    if name in ClusterConfig.model_fields and name not in BY_HAND:
        assert said(load_config, None, {"model": "m", name: value}) == flag
        file = tmp_path / "cluster.toml"
        file.write_text(f'model = "m"\n{name} = {json.dumps(value)}\n')
        assert said(load_config, file, {}) == f"{name}{problem} (in {file} or as a flag)"


def test_a_service_that_is_told_something_wrong_ends_and_tells_its_parent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv(READY_FD, str(writer))
    with pytest.raises(SystemExit) as ended:
        settings_or_exit(ControllerSettings, ["--stages", "h:1", "--block-size", "0"])
    with os.fdopen(reader) as pipe:
        told = json.loads(pipe.read())
    problem = "--block-size: must be a whole number in [1, 1024], got 0"
    assert ended.value.code == 2 and told == {"failed": problem, "settings": True}
    assert capsys.readouterr().err == f"python -m controller: {problem}\n"


@pytest.mark.parametrize("model", MODELS)
def test_what_is_required_is_asked_for(model: type[ServiceSettings]) -> None:
    if REQUIRED[model]:
        flag = REQUIRED[model][0]
        assert said(parse_settings, model, [], {}).startswith(f"{flag} (or TIDEPIPE_")


@settings(max_examples=30)
@given(st.text(max_size=8))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    for model in MODELS:
        for name, setting in settings_of(model).items():
            try:
                value = getattr(
                    parse_settings(model, REQUIRED[model], {variable_of(model, setting): text}), name
                )
            except ConfigError as error:
                assert setting.flag in str(error) or variable_of(model, setting) in str(error)
            else:
                assert not text or setting.kind is str or value == setting.read(text) or Path(text) == value


def test_every_setting_says_what_it_is() -> None:
    models: tuple[type[BaseModel], ...] = (*MODELS, ClusterConfig)
    for model in models:
        for setting in settings_of(model).values():
            assert (setting.help.endswith(".") and setting.metavar) or setting.kind is bool, setting.name


def test_the_client_does_not_load_settings() -> None:
    code = "import sys, tidepipe; print('pydantic' in sys.modules, 'tidepipe_common.settings' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]

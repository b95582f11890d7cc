"""What the deployment's files say of each other, and of the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from deploy.requirements import beyond
from tidepipe_common.security.expiry import WARN_DAYS

ROOT = Path(__file__).parents[3]
OF_PROMETHEUS = {"up", "process_start_time_seconds", "process_open_fds", "process_max_fds"}
WORDS = {
    "sum",
    "by",
    "without",
    "rate",
    "increase",
    "changes",
    "time",
    "job",
    "tidepipe",
    "model_name",
    "state",
}


def test_images_carry_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    assert set(re.findall(r"TIDEPIPE_VERSION:-([^}]*)}", compose)) == {version}


def test_what_is_fetched_is_named_by_digest() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text() + (ROOT / "deploy" / "Dockerfile").read_text()
    images = re.findall(r"(?:_IMAGE:-|PYTHON_IMAGE=)([\w./-]+:[^\s}]*)", text)
    assert len(images) == 3
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in images)


def test_a_workers_image_adds_what_a_service_has_not() -> None:
    service, worker = ((ROOT / "locks" / f"{name}.txt").read_text() for name in ("service", "worker"))
    added = beyond(service, worker)
    assert set(worker.splitlines()) <= {*service.splitlines(), *added.splitlines()}
    assert "sympy==" in added and "numpy==" not in added


def test_alerts_ask_for_metrics_that_there_are() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
    described = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "reference" / "metrics.md").read_text()))
    asked = {
        name
        for rule in rules
        for name in re.findall(r"[a-z][a-z_]+", re.sub(r"\[\w+\]", "", rule["expr"]))
        if name not in WORDS
    }
    assert asked <= described | OF_PROMETHEUS
    (certificates,) = (rule["expr"] for rule in rules if rule["alert"] == "CertificateEnds")
    assert certificates.endswith(f"< {WARN_DAYS:g} * 24 * 3600")

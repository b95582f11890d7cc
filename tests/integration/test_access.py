"""`tidepipe up --tls auto`, also with API keys: every port x every credential, and no secret in a log."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path

import httpx
import pytest

from bench.access_attempts import ANSWERED, HANDSHAKE, Certificates, Keys
from bench.access_table import BEGIN, END, OPEN, Row, certificate_rows, key_rows, table
from bench.secured_cluster import SecuredCluster, secured_cluster
from tidepipe_common.security.api_key import KEY_ROLES
from tidepipe_common.security.authority import CA_FILE, TOKEN_FILE, files_of
from tidepipe_common.security.principals import ADMIN, INFERENCE

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "access.md"


async def tidepipe(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidepipe.cli.main", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()


def private_lines(folder: Path) -> list[str]:
    """The base64 of all private keys there, without what all keys have in common, and the cluster token."""
    lines = [
        line for file in folder.glob("*.key") for line in file.read_text().splitlines() if "-----" not in line
    ]
    return [line[-24:] for line in lines] + [(folder / TOKEN_FILE).read_text().strip()]


def assert_in_no_log(cluster: SecuredCluster, secrets: list[str]) -> None:
    logs = {file.name: file.read_text(errors="replace") for file in cluster.folder.glob("*.log")}
    assert {"router.log", "controller-0.log", "predictor.log", "stage-worker-0-0.log"} <= set(logs)
    assert "refused" in logs["router.log"], "misuse is logged"
    told = [(name, secret[:6]) for name, text in logs.items() for secret in secrets if secret in text]
    assert told == []


def assert_refused_but_for_the_right_one(rows: list[Row], *, with_keys: bool) -> None:
    unknown = {HANDSHAKE} if not with_keys else {"UNAUTHENTICATED", "401"}
    denied = {"PERMISSION_DENIED", "403", *([] if with_keys else [HANDSHAKE])}
    for row in rows:
        assert row.plaintext == HANDSHAKE, row
        if with_keys and row.surface == OPEN:
            assert {row.nothing, row.foreign, row.expired, row.right} == {ANSWERED}, row
            continue
        assert {row.nothing, row.foreign, row.expired} <= unknown, row
        assert set(row.wrong_role.split(", ")) <= denied, row
        assert row.right == ANSWERED, row


async def test_with_certificates(model_path: Path, tmp_path: Path) -> None:
    async with secured_cluster(str(model_path), tmp_path / "run") as cluster:
        certificates = Certificates(cluster.tls, tmp_path)
        rows = await certificate_rows(cluster, certificates, router=True)
        cert, key = files_of(cluster.tls, ADMIN)
        flags = ("--tls-ca", str(cluster.tls / CA_FILE), "--tls-cert", str(cert), "--tls-key", str(key))
        code, output = await tidepipe("admin", "status", "--endpoint", cluster.grpc, *flags)
        assert code == 0 and "instance-0" in output, output
        code, output = await tidepipe("admin", "status", "--endpoint", cluster.grpc)
        assert code != 0 and "Traceback" not in output, output
        cert, key = files_of(cluster.tls, INFERENCE)
        own = {"TIDEPIPE_TLS_CA": str(cluster.tls / CA_FILE)}
        own |= {"TIDEPIPE_TLS_CERT": str(cert), "TIDEPIPE_TLS_KEY": str(key)}
        code, output = await tidepipe(
            "generate", "hello", "--max-tokens", "2", "--endpoint", cluster.grpc, **own
        )
        assert code == 0, output
        assert_in_no_log(cluster, private_lines(cluster.tls))
    assert {row.port for row in rows} >= {"supervisor gRPC", "stage_worker gRPC", "predictor metrics"}
    assert_refused_but_for_the_right_one(rows, with_keys=False)
    assert_documented(rows)


async def test_with_api_keys(model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.db"
    keys = Keys(file, KEY_ROLES)
    async with secured_cluster(str(model_path), tmp_path / "run", "--api-keys", str(file)) as cluster:
        certificates = Certificates(cluster.tls, tmp_path)
        rows = await key_rows(cluster, certificates, keys)
        others = await certificate_rows(cluster, certificates, router=False)
        ca = str(cluster.tls / CA_FILE)
        mine = keys.of_role["inference"]
        code, output = await tidepipe(
            *("generate", "hello", "--max-tokens", "2", "--endpoint", cluster.grpc),
            TIDEPIPE_TLS_CA=ca,
            TIDEPIPE_API_KEY=mine,
        )
        assert code == 0, output
        await misuse(cluster, ca, mine)
        assert_in_no_log(cluster, [*keys.secrets, *private_lines(cluster.tls)])
    assert_refused_but_for_the_right_one(rows, with_keys=True)
    assert_refused_but_for_the_right_one(others, with_keys=False)
    assert_documented(rows)


async def misuse(cluster: SecuredCluster, ca: str, key: str) -> None:
    """A key in the places where people put it by mistake."""
    url = f"https://{cluster.http}/v1/completions"
    async with httpx.AsyncClient(
        verify=ssl.create_default_context(cafile=ca), timeout=20, trust_env=False
    ) as client:
        for where in (
            {"params": {"api_key": key}},
            {"headers": {"x-api-key": f"Bearer {key}"}},
            {"headers": {"authorization": key}},
            {"headers": {"authorization": f"Basic {key}"}},
            {"headers": {"authorization": f"Bearer {key}x"}},
        ):
            answer = await client.post(url, json={"prompt": key}, **where)  # type: ignore[arg-type]
            assert answer.status_code == 401 and key not in answer.text
        body = {"prompt": key, "max_tokens": key}
        answer = await client.post(url, json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 400


def assert_documented(rows: list[Row]) -> None:
    """What the page says is what happens."""
    documented = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    heading = len(table([]).splitlines())
    assert documented.startswith(table([])), "python -m bench.access_table --write docs/reference/access.md"
    for line in table(rows).splitlines()[heading:]:
        assert line in documented.splitlines(), line

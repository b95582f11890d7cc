"""Every gRPC service has a rule, credentials that make no sense are refused, and so are open doors."""

from __future__ import annotations

import importlib
import pkgutil
import stat
from pathlib import Path

import pytest

import tidepipe.v1
from tidepipe_common.errors import ConfigError
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.authority import CA_FILE, TOKEN_FILE, files_of, make_certificates
from tidepipe_common.security.credentials import BEARER, Credentials
from tidepipe_common.security.principals import ADMIN, CLIENTS, RULES, SERVICES


def test_every_service_of_the_contract_has_a_rule() -> None:
    found = set()
    for module in pkgutil.iter_modules(tidepipe.v1.__path__):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(f"tidepipe.v1.{module.name}").DESCRIPTOR
            found |= {service.full_name for service in descriptor.services_by_name.values()}
    assert found <= set(RULES), f"say in security/principals.py who may call {found - set(RULES)}"
    assert {name for name, rule in RULES.items() if rule.everyone} == {"grpc.health.v1.Health"}


def test_certificates_are_private_and_overwrite_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    written = make_certificates(folder, ["node-1", "10.0.0.1"], days=1)
    private = [path for path in written if path.suffix != ".pem"]
    assert len(private) == len(SERVICES) + len(CLIENTS) + 2  # CA key and token
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    with pytest.raises(ConfigError, match="not empty"):
        make_certificates(folder, [], days=1)


def test_credentials_that_make_no_sense(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    make_certificates(folder, [], days=1)
    expired = tmp_path / "expired"
    make_certificates(expired, [], days=1e-9)
    cert, key = files_of(folder, ADMIN)
    old_cert, old_key = files_of(expired, ADMIN)
    other_key = files_of(folder, SERVICES[0])[1]
    ca = folder / CA_FILE
    short = tmp_path / "short"
    short.write_text("guess")
    for wrong, message in (
        (Credentials(cert_file=cert, key_file=key), "--tls-ca"),
        (Credentials(ca_file=ca), "certificate of its own"),
        (Credentials(ca_file=ca, cert_file=cert), "together"),
        (Credentials(ca_file=ca, cert_file=cert, key_file=other_key), "cannot use"),
        (Credentials(ca_file=tmp_path / "missing", cert_file=cert, key_file=key), "cannot read"),
        (Credentials(ca_file=expired / CA_FILE, cert_file=old_cert, key_file=old_key), "expired on"),
        (Credentials(api_key="tp-a-b"), "in the clear"),
        (Credentials(token_file=short), "no cluster token"),
        (Credentials(ca_file=ca, cert_file=cert, key_file=key, token_file=short), "no cluster token"),
        (Credentials(ca_file=ca, cert_file=cert, key_file=key, clients="anybody"), "--tls-clients"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong.check(server=True)
    Credentials(ca_file=ca, cert_file=cert, key_file=key, clients=BEARER).check(server=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.1.2.3", "example.org"])
async def test_no_open_port_beyond_the_loopback(host: str) -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        await RpcServer(f"{host}:0", credentials=Credentials()).start([])


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    token = tmp_path / TOKEN_FILE
    token.write_text("s3cret" * 5)
    credentials = Credentials(token_file=token, api_key="tp-1-s3cret")
    assert credentials.token
    assert "s3cret" not in repr(credentials)


def test_nothing_is_unpickled_and_no_remote_code_runs() -> None:
    root = Path(__file__).parents[3]
    packages = ("common", "controller", "predictor", "router", "stage_worker", "tidepipe")
    forbidden = (
        "import pickle",
        "pickle.load",
        "torch.load(",
        "trust_remote_code=True",
        "joblib",
        "marshal.load",
    )
    found = [
        (str(path.relative_to(root)), word)
        for package in packages
        for path in (root / package).rglob("*.py")
        for word in forbidden
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []

"""Certificates that are renewed, and the warning that they should be."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from tidepipe_common.errors import ConfigError
from tidepipe_common.rpc.channel import is_serving, open_channel
from tidepipe_common.rpc.server import RpcServer
from tidepipe_common.security.authority import (
    CA_FILE,
    CA_KEY_FILE,
    files_of,
    make_certificates,
    renew_certificates,
)
from tidepipe_common.security.credentials import Credentials, expiry, refuse_out_of_time
from tidepipe_common.security.expiry import CertificateWatch
from tidepipe_common.security.principals import CONTROLLER, ROUTER


def identity(folder: Path, principal: str, ca: Path | None = None) -> Credentials:
    cert, key = files_of(folder, principal)
    return Credentials(ca_file=ca or folder / CA_FILE, cert_file=cert, key_file=key)


async def talk(server: Credentials, client: Credentials) -> bool:
    rpc = RpcServer("127.0.0.1:0", credentials=server)
    address = await rpc.start([])
    await rpc.set_serving(True)
    try:
        async with open_channel(address, credentials=client) as channel:
            return await is_serving(channel, 10.0)
    finally:
        await rpc.stop(0)


async def test_renewed_one_at_a_time_old_and_new_get_along(tmp_path: Path) -> None:
    folder, ca_key = tmp_path / "tls", tmp_path / "elsewhere.key"
    make_certificates(folder, ["node-1"], 2, ca_key)
    old_ca = tmp_path / "old-ca.pem"
    old_ca.write_bytes((folder / CA_FILE).read_bytes())
    before = x509.load_pem_x509_certificate(files_of(folder, ROUTER)[0].read_bytes())

    assert renew_certificates(folder, ca_key, 100, ["ca", "router"]) == [
        folder / CA_FILE,
        files_of(folder, ROUTER)[0],
    ]

    after = x509.load_pem_x509_certificate(files_of(folder, ROUTER)[0].read_bytes())
    assert after.public_key() == before.public_key()
    assert list(after.extensions) == list(before.extensions)
    assert after.not_valid_after_utc > before.not_valid_after_utc + datetime.timedelta(days=90)
    # The router was restarted with its new files, the controller runs on with what it had.
    assert await talk(identity(folder, ROUTER), identity(folder, CONTROLLER, old_ca))
    assert await talk(identity(folder, CONTROLLER, old_ca), identity(folder, ROUTER))


def test_what_cannot_be_renewed_is_said_and_nothing_changes(tmp_path: Path) -> None:
    folder, strange = tmp_path / "tls", tmp_path / "strange"
    make_certificates(folder, [], 1)
    make_certificates(strange, [], 1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for ca_key, days, names, message in (
        (strange / CA_KEY_FILE, 9, [], "is not the key of"),
        (tmp_path / "missing.key", 9, [], "--ca-key"),
        (folder / CA_FILE, 9, [], "not a private key"),
        (folder / CA_KEY_FILE, 0, [], "some days"),
        (folder / CA_KEY_FILE, 9, ["rooter"], "there is no rooter; known: ca, "),
    ):
        with pytest.raises(ConfigError, match=message):
            renew_certificates(folder, ca_key, days, names)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls", [], 5)
    renew_certificates(tmp_path / "tls", tmp_path / "tls" / CA_KEY_FILE, 100, ["router"])
    assert expiry(files_of(tmp_path / "tls", ROUTER)[0]) <= expiry(tmp_path / "tls" / CA_FILE)


def test_a_warning_comes_thirty_days_before_the_end(tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls", [], 40)
    watch = CertificateWatch(identity(tmp_path / "tls", ROUTER))
    (family,) = watch.metrics()
    assert {sample.labels["certificate"] for sample in family.samples} == {"own", "ca"}
    now = datetime.datetime.now(datetime.UTC)
    assert watch.warn(now) == []
    assert watch.warn(now + datetime.timedelta(days=11)) == ["own", "ca"]


def test_a_certificate_out_of_its_time_or_out_of_reach_is_named(tmp_path: Path) -> None:
    """Expired, not valid yet by a clock that is wrong, unreadable: in one sentence, with the file's name."""
    make_certificates(tmp_path / "tls", [], 40)
    who = identity(tmp_path / "tls", ROUTER)
    assert who.cert_file is not None and who.key_file is not None
    now = datetime.datetime.now(datetime.UTC)
    refuse_out_of_time(who.cert_file, now + datetime.timedelta(days=39))
    for days, words in ((41, "expired on"), (-1, "set the clock right")):
        with pytest.raises(ConfigError, match=rf"router\.pem {words}|router\.pem .*{words}"):
            refuse_out_of_time(who.cert_file, now + datetime.timedelta(days=days))
    who.key_file.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"cannot read .*router\.key"):
        who.check(server=True)


@pytest.mark.parametrize("host", ["http://10.0.0.1", "10.0.0.1:7070", "10.0.0.300", "node 1", "münchen", ""])
def test_a_name_that_nobody_can_call_gets_no_certificate(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="takes a machine's name or address"):
        make_certificates(tmp_path / "tls", ["node-1", "worker_0.cluster.local", "*.pool", "::1", host], 5)
    assert not (tmp_path / "tls").exists()

"""A certificate authority for development, and the certificates of one cluster."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError
from common.security.principals import CLIENTS, SERVICES, URI_PREFIX

CA_FILE = "ca.pem"
CA_KEY_FILE = "ca.key"
TOKEN_FILE = "token"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_BACKDATE = datetime.timedelta(minutes=5)
"""Clocks of several machines are never quite the same."""


class Authority:
    """Signs. Keys are P-256: what every TLS library of today takes."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def new(cls, lifetime: datetime.timedelta) -> Authority:
        """A fresh one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("TidePipe development CA")
        certificate = (
            _builder(name, name, key.public_key(), lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    def issue(
        self, principal: str, hosts: Sequence[str], lifetime: datetime.timedelta
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """Key and certificate of a principal. hosts: names and addresses under which it is called, if any."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if hosts:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(URI_PREFIX + principal)]
        certificate = (
            _builder(_name(principal), self.certificate.subject, key.public_key(), lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([*names, *(_host_name(host) for host in hosts)]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return key, certificate

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """Whoever has it can be anybody."""
        return self._key


def make_certificates(folder: Path, hosts: Sequence[str], days: float) -> list[Path]:
    """Fill a new or empty folder: CA, a certificate per service and client role, and a cluster token.

    hosts: names and addresses of the machines, beside those of the loopback. Private files can be read by
    their owner alone. ConfigError if something is there already: nobody's keys are overwritten.
    """
    if days <= 0:
        raise ConfigError(f"certificates must be valid for some days, got {days}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name a new folder, or remove the old certificates")
        folder.chmod(0o700)
        lifetime = datetime.timedelta(days=days)
        authority = Authority.new(lifetime)
        written = [
            _write(folder / CA_FILE, _pem(authority.certificate), 0o644),
            _write(folder / CA_KEY_FILE, _key_pem(authority.key), 0o600),
            _write(folder / TOKEN_FILE, secrets.token_urlsafe(32).encode() + b"\n", 0o600),
        ]
        names = list(dict.fromkeys((*LOCAL_HOSTS, *hosts)))
        for principal in (*SERVICES, *CLIENTS):
            key, certificate = authority.issue(principal, names if principal in SERVICES else (), lifetime)
            cert_file, key_file = files_of(folder, principal)
            written += [_write(cert_file, _pem(certificate), 0o644), _write(key_file, _key_pem(key), 0o600)]
    except OSError as error:
        raise ConfigError(f"cannot write certificates to {folder}: {error.strerror or error}") from error
    return written


def files_of(folder: Path, principal: str) -> tuple[Path, Path]:
    """Certificate and key of a principal in a folder that `make_certificates` filled."""
    stem = principal.partition("/")[2]
    return folder / f"{stem}.pem", folder / f"{stem}.key"


def _write(path: Path, content: bytes, mode: int) -> Path:
    # The mode from the beginning: not even for a moment may others read a key.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + lifetime)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

"""A certificate authority for development, and the certificates of one cluster."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidepipe_common.errors import ConfigError
from tidepipe_common.regular_files import read_bytes
from tidepipe_common.security.principals import CLIENTS, SERVICES, URI_PREFIX

CA_NAME = "ca"
CA_FILE = "ca.pem"
CA_KEY_FILE = "ca.key"
TOKEN_FILE = "token"
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
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

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        """From files; ConfigError if they cannot be read or do not belong together."""
        found = _load_certificate(certificate)
        private = _load_key(key)
        if private.public_key() != found.public_key():
            raise ConfigError(f"{key} is not the key of {certificate}")
        return cls(private, found)

    def renewed(self, lifetime: datetime.timedelta) -> Authority:
        """The same authority, key and name, for a new lifetime: what it has signed stays valid."""
        name = self.certificate.subject
        certificate = _again(_builder(name, name, self._key.public_key(), lifetime), self.certificate)
        return Authority(self._key, certificate.sign(self._key, hashes.SHA256()))

    def renew(self, certificate: x509.Certificate, lifetime: datetime.timedelta) -> x509.Certificate:
        """A certificate like one that it signed before, for the same key, for a new lifetime."""
        builder = _builder(certificate.subject, self.certificate.subject, _public_key(certificate), lifetime)
        return _again(builder, certificate).sign(self._key, hashes.SHA256())

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """Whoever has it can be anybody."""
        return self._key


def make_certificates(
    folder: Path, hosts: Sequence[str], days: float, ca_key: Path | None = None
) -> list[Path]:
    """Fill a new or empty folder: CA, a certificate per service and client role, and a cluster token.

    ca_key: where to put the CA's key; None: there, too. hosts: names and addresses of the machines, beside
    those of the loopback. Private files can be read by their owner alone. ConfigError if something is there
    already: nobody's keys are overwritten.
    """
    if days <= 0:
        raise ConfigError(f"certificates must be valid for some days, got {days}")
    for host in hosts:
        _check_host(host)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name a new folder, or remove the old certificates")
        folder.chmod(0o700)
        lifetime = datetime.timedelta(days=days)
        authority = Authority.new(lifetime)
        written = [
            _write(folder / CA_FILE, _pem(authority.certificate), 0o644),
            _write(ca_key or folder / CA_KEY_FILE, _key_pem(authority.key), 0o600),
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


def renew_certificates(folder: Path, ca_key: Path, days: float, principals: Sequence[str] = ()) -> list[Path]:
    """Give certificates in a folder of `make_certificates` a new lifetime; keys and names stay.

    principals: which (`router`, `client`, ...; `ca` is the CA's own); none: all. Each file is replaced as a
    whole, so that a process which starts meanwhile reads the old one or the new one. Old and new ones get
    along: services may be restarted one at a time. ConfigError if something is missing or does not fit.
    """
    if days <= 0:
        raise ConfigError(f"certificates must be valid for some days, got {days}")
    lifetime = datetime.timedelta(days=days)
    authority = Authority.load(folder / CA_FILE, ca_key)
    known = {name.partition("/")[2]: name for name in (*SERVICES, *CLIENTS)}
    for name in principals:
        if name not in known and name != CA_NAME:
            raise ConfigError(f"there is no {name}; known: {CA_NAME}, {', '.join(known)}")
    wanted = list(principals) or [CA_NAME, *known]
    written = []
    try:
        if CA_NAME in wanted:
            authority = authority.renewed(lifetime)
            written.append(_replace(folder / CA_FILE, _pem(authority.certificate)))
        for name in (name for name in wanted if name != CA_NAME):
            path, _ = files_of(folder, known[name])
            # No certificate outlives the CA's: it would look valid, and not be.
            left = authority.certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
            renewed = authority.renew(_load_certificate(path), min(lifetime, left))
            written.append(_replace(path, _pem(renewed)))
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


def _replace(path: Path, content: bytes) -> Path:
    """Owner and mode stay."""
    about = path.stat()
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    _write(partial, content, about.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(partial, about.st_uid, about.st_gid)
    return partial.replace(path)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_bytes(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate: {error}") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_bytes(path), None)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; the CA's key signs what is renewed: name it with --ca-key"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a private key without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not a key of the kind that `tidepipe certs make` makes")
    return key


def _public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("the certificate's key is not of the kind that `tidepipe certs make` makes")
    return key


def _again(builder: x509.CertificateBuilder, certificate: x509.Certificate) -> x509.CertificateBuilder:
    """With all that a certificate says beside its lifetime."""
    for extension in certificate.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _check_host(host: str) -> None:
    """ConfigError unless it is an address, or can be a name in DNS: nobody would ever match anything else."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return
    labels = host.removeprefix("*.").split(".")
    if not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdecimal():
        raise ConfigError(f"--host takes a machine's name or address, without scheme and port, got {host!r}")


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

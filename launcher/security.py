"""Certificates and keys of a local cluster."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

import structlog

from launcher.config import ClusterConfig
from tidepipe_common.errors import ConfigError, TidePipeError
from tidepipe_common.security import credentials as names
from tidepipe_common.security.authority import CA_FILE, TOKEN_FILE, files_of, make_certificates
from tidepipe_common.security.credentials import Credentials, is_loopback
from tidepipe_common.security.key_store import KeyStore
from tidepipe_common.security.principals import (
    ADMIN,
    CONTROLLER,
    PREDICTOR,
    PROVISIONER,
    ROUTER,
    STAGE_WORKER,
)
from tidepipe_common.security.trusted_files import UntrustedError, trusted
from tidepipe_common.settings.defaults import CERTIFICATE_DAYS
from tidepipe_common.settings.upstream import (
    UPSTREAM_API_KEY,
    UpstreamSettings,
    is_upstream_key,
    upstream_key,
)

AUTO = "auto"
AUTO_FOLDER = "tls"
OWN_KEY_NAME = "supervisor of a local cluster"
OWN_KEY_S = 3600.0
"""A supervisor that is killed leaves a key of an admin behind, which must not stay one for ever."""
RENEW_S = OWN_KEY_S / 6

log = structlog.get_logger()

_PRINCIPALS = {
    "router": ROUTER,
    "controller": CONTROLLER,
    "controller.upstream": CONTROLLER,
    "stage_worker": STAGE_WORKER,
    "predictor": PREDICTOR,
}
_VARIABLES = (names.CA, names.CERT, names.KEY, names.TOKEN, names.CLIENTS, names.INSECURE, names.API_KEY)


class ClusterSecurity:
    """What the processes of one cluster, and its supervisor, prove themselves with."""

    def __init__(
        self,
        config: ClusterConfig,
        folder: Path | None,
        own_key: tuple[str, str] | None,
        token_file: Path | None = None,
    ) -> None:
        """token_file: of a cluster without certificates; None: its processes take anybody's calls."""
        self.folder = folder
        self._token_file = token_file
        self._config = config
        self._own_key = own_key

    @classmethod
    def prepare(cls, config: ClusterConfig, run_dir: Path) -> ClusterSecurity:
        """Make or find the certificates, and a key for the supervisor; ConfigError if there are none."""
        if config.tls is None:
            # Processes on other machines would not have it; another cluster's router has its own, or none.
            if config.cluster_token is None and config.provisioner == "local" and config.router is None:
                return cls(config, None, None, _new_token(run_dir))
            given = None if config.cluster_token is None else Path(config.cluster_token).absolute()
            if given is not None and config.router is None and not given.exists():
                _write_token(given)  # the first cluster that shares it
            _ = Credentials(token_file=given).token  # ConfigError if it is none
            return cls(config, None, None, given)
        if config.tls == AUTO:
            folder = run_dir / AUTO_FOLDER
            if not folder.exists():
                hosts = [] if is_loopback(config.host) else [config.host, socket.gethostname()]
                make_certificates(folder, hosts, CERTIFICATE_DAYS)
        else:
            folder = Path(config.tls).absolute()  # processes on other nodes begin in other folders
            if not (folder / CA_FILE).is_file():
                raise ConfigError(
                    f"{folder} has no {CA_FILE}: make certificates with `tidepipe certs make {folder}`"
                )
            _check_certificates(config, folder)
        own_key = None
        if config.api_keys is not None:
            record, key = KeyStore(Path(config.api_keys)).add(OWN_KEY_NAME, ["admin"], lifetime_s=OWN_KEY_S)
            own_key = (record.key_id, key)
        return cls(config, folder, own_key)

    @property
    def open_to_all(self) -> bool:
        """True if whoever reaches the services' ports may call them."""
        return self.folder is None and self._token_file is None

    def environment(self, module: str, number: int = 0) -> Mapping[str, str]:
        """Environment of a process: ours, with its own credentials and without any that are ours.

        number: of those that stand for upstream servers, from 0; each is shown its server's key alone.
        """
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in _VARIABLES and not is_upstream_key(name)
        }
        if module == UpstreamSettings.service and (their_key := upstream_key(os.environ, number)):
            clean[UPSTREAM_API_KEY] = their_key
        if self._config.insecure:
            clean[names.INSECURE] = "1"
        if self.folder is None:
            if self._token_file is not None:
                clean[names.TOKEN] = str(self._token_file)
            return clean
        certificate, key = files_of(self.folder, _PRINCIPALS[module])
        own = {names.CA: self.folder / CA_FILE, names.CERT: certificate, names.KEY: key}
        if self._shows_token:
            own[names.TOKEN] = self.folder / TOKEN_FILE
        return clean | {name: str(path) for name, path in own.items()}

    @property
    def provisioner(self) -> Credentials:
        """What the supervisor serves the router with."""
        if self.folder is None:
            return Credentials(insecure=self._config.insecure, token_file=self._token_file)
        certificate, key = files_of(self.folder, PROVISIONER)
        return Credentials(ca_file=self.folder / CA_FILE, cert_file=certificate, key_file=key)

    @property
    def service(self) -> Credentials:
        """What the router proves itself with to other services; for tests of them."""
        if self.folder is None:
            return Credentials(token_file=self._token_file)
        certificate, key = files_of(self.folder, ROUTER)
        token = self.folder / TOKEN_FILE if self._shows_token else None
        return Credentials(
            ca_file=self.folder / CA_FILE, cert_file=certificate, key_file=key, token_file=token
        )

    @property
    def _shows_token(self) -> bool:
        """A router with API keys takes no certificates; whether another cluster's has any, we do not know."""
        return self._config.api_keys is not None or self._config.router is not None

    @property
    def client(self) -> Credentials:
        """What the supervisor's own calls are made with."""
        if self.folder is None:
            return Credentials()
        ca = self.folder / CA_FILE
        if self._own_key is not None:
            return Credentials(ca_file=ca, api_key=self._own_key[1])
        certificate, key = files_of(self.folder, ADMIN)
        return Credentials(ca_file=ca, cert_file=certificate, key_file=key)

    async def keep_key(self) -> None:
        """Put off the end of the supervisor's key, until cancelled."""
        while self._own_key is not None and self._config.api_keys is not None:
            await asyncio.sleep(RENEW_S)
            store = KeyStore(Path(self._config.api_keys))
            try:
                await asyncio.to_thread(store.extend, self._own_key[0], OWN_KEY_S)
            except TidePipeError as error:  # there is time for another attempt, or for the operator
                log.warning("the supervisor's API key cannot be renewed", reason=str(error))

    def close(self) -> None:
        """Revoke the supervisor's key, and forget the token."""
        if self._token_file is not None and self._config.cluster_token is None:
            self._token_file.unlink(missing_ok=True)
        if self._own_key is not None and self._config.api_keys is not None:
            KeyStore(Path(self._config.api_keys)).revoke(self._own_key[0])
            self._own_key = None


def _check_certificates(config: ClusterConfig, folder: Path) -> None:
    """ConfigError if one cannot be used of those with which our processes are about to start."""
    used = [ROUTER, PREDICTOR, PROVISIONER]
    if config.provisioner == "local":
        used.append(CONTROLLER)
        if config.engine == "native" and not config.upstreams:
            used.append(STAGE_WORKER)
    if config.api_keys is None and config.router is None:
        used.append(ADMIN)
    for principal in used:
        certificate, key = files_of(folder, principal)
        Credentials(ca_file=folder / CA_FILE, cert_file=certificate, key_file=key).check(server=True)
    if config.api_keys is not None or config.router is not None:
        _ = Credentials(token_file=folder / TOKEN_FILE).token  # shown where no certificate is asked for


def _new_token(run_dir: Path) -> Path:
    """A file with a fresh cluster token, where nobody else can read it or put another one in its place."""
    try:
        folder = trusted(run_dir)
    except UntrustedError:
        folder = Path(tempfile.mkdtemp(prefix="tidepipe-"))
    path = folder / f"{TOKEN_FILE}-{secrets.token_hex(4)}"
    _write_token(path)
    return path


def _write_token(path: Path) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot make the cluster token {path}: {error.strerror or error}") from error

"""`python -m deploy.secrets DIR`: certificates, cluster token, a first API key and Grafana's password.

Run it as root: private files belong to the user that the containers run as, and can be read by nobody else;
ca.pem, which clients need, by everybody. The CA's key, which no service needs, goes to DIR-authority, for
root alone: move it off the machine. Prints the API key, which is stored as a digest only.
"""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path

from tidepipe_common.security.authority import CA_KEY_FILE, make_certificates
from tidepipe_common.security.key_store import KeyStore
from tidepipe_common.settings.defaults import CERTIFICATE_DAYS

CONTAINER_USER = 10001
HOSTS = (
    "router", "predictor", "controller-a", "controller-b",
    "worker-a-0", "worker-a-1", "worker-b-0", "worker-b-1",
)  # fmt: skip
KEYS_FILE = "keys/keys.db"
"""In a folder of its own, which the router mounts: a key store that is restored is another file."""
GRAFANA_FILE = "grafana-password"
"""Of its user `admin`."""


def authority_folder(folder: Path) -> Path:
    """Where the CA's key is kept."""
    return folder.with_name(f"{folder.name}-authority")


def make_secrets(folder: Path) -> str:
    """Fill a new folder; the API key of its first user, with both roles. ConfigError if it is not empty."""
    authority = authority_folder(folder)
    authority.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_certificates(folder, HOSTS, CERTIFICATE_DAYS, authority / CA_KEY_FILE)
    folder.chmod(0o755)
    keys = folder / KEYS_FILE
    keys.parent.mkdir(mode=0o700)
    _, key = KeyStore(keys).add("first user", ["inference", "admin"])
    password = folder / GRAFANA_FILE
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24), encoding="ascii")
    for path in folder.rglob("*"):
        os.chown(path, CONTAINER_USER, CONTAINER_USER)
    return key


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("python -m deploy.secrets", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty")
    print(make_secrets(parser.parse_args().folder))


if __name__ == "__main__":
    main()

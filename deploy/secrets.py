"""`python -m deploy.secrets DIR`: certificates, cluster token, a first API key and Grafana's password.

Files belong to the user that the containers run as, and can be read by nobody else; run it as root.
Prints the API key, which is stored as a digest only.
"""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path

from common.security.authority import make_certificates
from common.security.key_store import KeyStore

CONTAINER_USER = 10001
HOSTS = (
    "router", "predictor", "controller-a", "controller-b",
    "worker-a-0", "worker-a-1", "worker-b-0", "worker-b-1",
)  # fmt: skip
DAYS = 365.0
KEYS_FILE = "keys.db"
GRAFANA_FILE = "grafana-password"
"""Of its user `admin`."""


def make_secrets(folder: Path) -> str:
    """Fill a new folder; the API key of its first user, with both roles."""
    make_certificates(folder, HOSTS, DAYS)
    _, key = KeyStore(folder / KEYS_FILE).add("first user", ["inference", "admin"])
    password = folder / GRAFANA_FILE
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24), encoding="ascii")
    for path in folder.iterdir():
        os.chown(path, CONTAINER_USER, CONTAINER_USER)
    return key


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("python -m deploy.secrets", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty")
    print(make_secrets(parser.parse_args().folder))


if __name__ == "__main__":
    main()

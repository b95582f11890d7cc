"""Ends of the certificates that a process uses: a metric, and a warning in time to renew them."""

from __future__ import annotations

import asyncio
import datetime
import functools
from collections.abc import Iterable

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from tidepipe_common.errors import ConfigError
from tidepipe_common.security.credentials import Credentials, expiry

WARN_DAYS = 30.0
"""Before the end; the alert rule in deploy/prometheus says the same."""
LOOK_AGAIN_S = 24 * 3600.0

log = structlog.get_logger()


def certificate_ends(credentials: Credentials) -> dict[str, datetime.datetime]:
    """When the process's own certificate (`own`) and the CA's (`ca`) end, UTC; those that can be read.

    Of the files as they are now. A process uses what they held when it started.
    """
    files = {"own": credentials.cert_file, "ca": credentials.ca_file}
    ends = {}
    for name, path in files.items():
        if path is not None:
            try:
                ends[name] = expiry(path)
            except ConfigError as error:
                log.warning("a certificate cannot be looked at", reason=str(error))
    return ends


class CertificateWatch:
    """The ends of this process's certificates, as they were at its start: those are in use until its end."""

    def __init__(self, credentials: Credentials) -> None:
        self._ends = certificate_ends(credentials)

    def metrics(self) -> Iterable[Metric]:
        """For `Telemetry.at_scrape`."""
        family = GaugeMetricFamily(
            "tidepipe_certificate_expires_seconds",
            "Unix time when a certificate in use ends.",
            labels=["certificate"],
        )
        for name, end in self._ends.items():
            family.add_metric([name], end.timestamp())
        yield family

    async def run(self) -> None:
        """Warn once a day from WARN_DAYS before the end, until cancelled."""
        while self._ends:
            self.warn(datetime.datetime.now(datetime.UTC))
            await asyncio.sleep(LOOK_AGAIN_S)

    def warn(self, now: datetime.datetime) -> list[str]:
        """Log what ends soon; the names of those certificates."""
        soon = [name for name, end in self._ends.items() if end - now < datetime.timedelta(days=WARN_DAYS)]
        for name in soon:
            log.warning(
                "a certificate ends soon; renew it with `tidepipe certs renew` and restart this process",
                certificate=name,
                ends=f"{self._ends[name]:%Y-%m-%d %H:%M} UTC",
                days=round((self._ends[name] - now) / datetime.timedelta(days=1), 1),
            )
        return soon


@functools.lru_cache(maxsize=1)
def watch_of(credentials: Credentials) -> CertificateWatch:
    """The one watch of a process, for who warns and who exports: the files are read once."""
    return CertificateWatch(credentials)

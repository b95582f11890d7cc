"""The metrics of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from tidepipe_common.security.expiry import watch_of
from tidepipe_common.security.process import own
from tidepipe_common.telemetry.loop_lag import PROCESS_LAG

Read = Callable[[], Iterable[Metric]]


class Telemetry:
    """One per process (or per service, where tests run several in one process).

    What a service counts anyway is read when somebody scrapes (`at_scrape`), so that pure cores need not
    know of metrics and nothing is counted twice. Only distributions and events that leave no trace in a
    service's state are recorded as they happen (`counter`, `histogram`). Scrapes run on the event loop that
    the service's state lives on.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.at_scrape(watch_of(own()).metrics)
        self.at_scrape(PROCESS_LAG.metrics)

    def at_scrape(self, read: Read) -> None:
        """Add what `read` returns to every scrape."""
        self.registry.register(_AtScrape(read))

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """A count of events; `_total` is added to its name."""
        return Counter(name, help_text, labels, registry=self.registry)

    def histogram(
        self, name: str, help_text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        """A distribution."""
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)


class _AtScrape:
    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Part of prometheus_client's Collector."""
        return self._read()


def gauge(name: str, help_text: str, value: float, **labels: str) -> GaugeMetricFamily:
    """A state with one value."""
    family = GaugeMetricFamily(name, help_text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def total(name: str, help_text: str, value: float, **labels: str) -> CounterMetricFamily:
    """A sum since start with one value; `_total` is added to its name."""
    family = CounterMetricFamily(name, help_text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family

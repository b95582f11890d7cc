"""What a router process is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from router.batches.limits import FileLimits
from router.scheduler.mitosis import Bounds
from router.scheduler.slo import INTERACTIVE, SloTarget
from tidepipe_common.http.descriptors import REQUESTS
from tidepipe_common.http.site import Site

DEFAULT_MAX_REQUESTS = REQUESTS
DEFAULT_REMEMBER_S = 120.0
DEFAULT_BATCH_CONCURRENCY = 256
DEFAULT_ROUTING = "least-loaded"
DEFAULT_PATIENCE_S = 60.0
DEFAULT_DRAIN_S = 600.0


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """listen, http, predictor, provisioner: HOST:PORT, all but the first empty for none. Times in seconds.

    max_requests: unfinished ones at most. max_pending: of these, answers that wait for an instance.
    routing: name of the routing policy. slo: targets of requests that bring none of their own.
    bounds: instances per macro instance.
    overall: HOST:PORT of the router above; to it this one is an instance `name`, reached at `advertise`.
    patience_s: how long a request waits while there is no instance at all.
    stop_grace_s: how long streams may go on after the process was told to stop.
    take_over: another router listens here and is about to leave; drain_s: how long streams may go on at one
    that was succeeded.
    data_dir: folder of files and batches (/v1/files, /v1/batches); empty: there are none.
    batch_concurrency: requests of batches in flight at most.
    api_keys: file with the keys that clients need; None: they need none.
    files: how much is kept of them, and how long.
    site: names it is called by over HTTP, and whose pages may call it from a browser.
    connections, connections_per_address: over HTTP at a time; None: by the limit of open files.
    metrics_port: of a listener for metrics alone, 0 for a free one; the HTTP port has them anyway.
    """

    listen: str
    model_name: str
    http: str = ""
    predictor: str = ""
    provisioner: str = ""
    overall: str = ""
    advertise: str = ""
    name: str = ""
    max_requests: int = DEFAULT_MAX_REQUESTS
    max_pending: int = DEFAULT_MAX_REQUESTS
    routing: str = DEFAULT_ROUTING
    slo: SloTarget = INTERACTIVE
    bounds: Bounds = Bounds()  # noqa: RUF009 (frozen)
    remember_s: float = DEFAULT_REMEMBER_S
    patience_s: float = DEFAULT_PATIENCE_S
    stop_grace_s: float = 10.0
    take_over: bool = False
    drain_s: float = DEFAULT_DRAIN_S
    data_dir: str = ""
    batch_concurrency: int = DEFAULT_BATCH_CONCURRENCY
    metrics_port: int | None = None
    api_keys: Path | None = None
    files: FileLimits = FileLimits()  # noqa: RUF009 (frozen)
    site: Site = Site()  # noqa: RUF009 (frozen)
    connections: int | None = None
    connections_per_address: int | None = None


def default_model_name(model: str) -> str:
    """Name under which a model is served if none is given: its folder's or file's, or as it was called."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    path = path.resolve()
    return path.stem if path.suffix == ".gguf" else path.name

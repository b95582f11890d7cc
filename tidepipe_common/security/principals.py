"""Names for whoever may call: services of the cluster, and clients by their role."""

from __future__ import annotations

from dataclasses import dataclass

URI_PREFIX = "spiffe://tidepipe/"
"""In certificates a principal stands in a URI subject alternative name, such as spiffe://tidepipe/service/router."""

ROUTER = "service/router"
CONTROLLER = "service/controller"
STAGE_WORKER = "service/stage-worker"
PREDICTOR = "service/predictor"
PROVISIONER = "service/provisioner"
SERVICES = (ROUTER, CONTROLLER, STAGE_WORKER, PREDICTOR, PROVISIONER)

INFERENCE = "client/inference"
ADMIN = "client/admin"
MONITOR = "client/monitor"
CLIENTS = (INFERENCE, ADMIN, MONITOR)


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a service. everyone: whoever got through the handshake, also without a name."""

    allowed: frozenset[str]
    everyone: bool = False

    @property
    def key_roles(self) -> tuple[str, ...]:
        """Roles of API keys that open it."""
        clients = sorted(name for name in self.allowed if name in CLIENTS)
        return tuple(name.partition("/")[2] for name in clients)


def _only(*principals: str) -> Rule:
    return Rule(frozenset(principals))


RULES: dict[str, Rule] = {
    "tidepipe.v1.StageService": _only(CONTROLLER, STAGE_WORKER),
    "tidepipe.v1.ControllerService": _only(ROUTER),
    "tidepipe.v1.PredictorService": _only(ROUTER, CONTROLLER),
    "tidepipe.v1.ProvisionerService": _only(ROUTER),
    "tidepipe.v1.RouterService": _only(CONTROLLER, ROUTER),
    "tidepipe.v1.InferenceService": _only(INFERENCE, ADMIN),
    "tidepipe.v1.AdminService": _only(ADMIN),
    # Of the router for operators; of controllers for the router.
    "tidepipe.v1.TimelineService": _only(ROUTER, ADMIN, MONITOR),
    # Health says nothing but "serving"; probes of container engines cannot hold secrets.
    "grpc.health.v1.Health": Rule(frozenset(), everyone=True),
    "grpc.reflection.v1alpha.ServerReflection": _only(*SERVICES, *CLIENTS),
}
"""Per gRPC service. What is not here is refused to everybody; a test holds that every service is here."""

_NOBODY = Rule(frozenset())


def rule_of(method: str) -> Rule:
    """Who may call `/package.Service/Method`."""
    return RULES.get(method.split("/", 2)[1], _NOBODY)


METRICS = _only(MONITOR, ADMIN)

HTTP_RULES: tuple[tuple[str, Rule], ...] = (
    ("/ui/", Rule(frozenset(CLIENTS), everyone=True)),
    ("/metrics", METRICS),
    ("/admin", _only(ADMIN)),
    ("", _only(INFERENCE, ADMIN)),
)
"""Per path of the router's HTTP port, by its beginning: the first that fits. The page's files hold nothing;
what they show comes from below /admin."""

HTTP_OPEN = ("/health", "/ready", "/", "/ui")
"""Paths that say nothing but how it stands; probes cannot hold secrets."""

HTTP_HANDSHAKE = _only(*CLIENTS)
"""Whose certificates get through to the HTTP port at all."""


def http_rule(path: str) -> Rule:
    """Who may ask for a path of the router's HTTP port."""
    if path in HTTP_OPEN:
        return Rule(frozenset(CLIENTS), everyone=True)
    return next(rule for begin, rule in HTTP_RULES if path.startswith(begin))


def principals_of(uris: list[str]) -> frozenset[str]:
    """Principals that a certificate with these URIs names."""
    return frozenset(uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX))

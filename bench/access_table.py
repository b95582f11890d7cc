"""Who gets in where: every port of running clusters x every kind of credential (docs/reference/access.md).

    python -m bench.access_table --model smollm2-135m --write docs/reference/access.md

Two clusters, as `tidepipe up` starts them: one with certificates alone, one with API keys as well.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from bench.access_attempts import Certificates, Credential, Keys, call_grpc, call_http
from bench.secured_cluster import GRPC, HTTP, METRICS, Port, SecuredCluster, secured_cluster
from tidepipe_common.security.api_key import KEY_ROLES
from tidepipe_common.security.authority import TOKEN_FILE
from tidepipe_common.security.principals import CLIENTS, RULES, SERVICES, Rule, http_rule
from tidepipe_common.security.principals import METRICS as METRICS_RULE

BEGIN, END = "<!-- made by bench.access_table -->\n", "<!-- end -->\n"
METHODS = {
    "InferenceService": "ListModels",
    "AdminService": "GetClusterStatus",
    "RouterService": "RemoveInstance",
    "TimelineService": "GetTimeline",
    "ControllerService": "Describe",
    "StageService": "DescribeStage",
    "PredictorService": "GetPredictorStatus",
    "ProvisionerService": "ListProvisioned",
}
"""Of each service a method that changes nothing when asked for nothing."""
SERVED = {
    "router": ("InferenceService", "AdminService", "RouterService", "TimelineService"),
    "controller": ("ControllerService", "TimelineService"),
    "stage_worker": ("StageService",),
    "predictor": ("PredictorService",),
    "supervisor": ("ProvisionerService",),
}
PACKAGE = "tidepipe.v1"
HTTP_SURFACES = ("/v1/models", "/openapi.json", "/metrics", "/admin/events", "/ui/")
"""Paths of the HTTP API, one of each kind."""
OPEN = "/ui/"
"""Asks for no key: the page's files say nothing, what it shows is /admin/events."""
Knock = Callable[[Credential], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Row:
    """How attempts end at one surface; with commas where those of one kind end in several ways."""

    port: str
    surface: str
    plaintext: str
    nothing: str
    foreign: str
    expired: str
    wrong_role: str
    right: str


HEAD = Row(
    "port",
    "surface",
    "plaintext",
    "no credential",
    "of another CA; unknown key",
    "expired; revoked key",
    "wrong role",
    "the right one",
)


async def certificate_rows(cluster: SecuredCluster, certificates: Certificates, *, router: bool) -> list[Row]:
    """Every port of the cluster that asks for certificates. router: the router's are among them."""
    rows = []
    for port, surface, rule, knock in surfaces(cluster):
        if port.process == "router" and port.kind != METRICS and not router:
            continue
        allowed = sorted(rule.allowed)
        denied = sorted({*SERVICES, *CLIENTS} - rule.allowed)
        rows.append(
            Row(
                f"{port.process} {port.kind}",
                surface,
                await knock(Credential(tls=False)),
                await knock(certificates.nobody),
                await _all(knock, [certificates.foreign(name) for name in allowed]),
                await _all(knock, [certificates.expired(name) for name in allowed]),
                await _all(knock, [certificates.valid(name) for name in denied]),
                await _all(knock, [certificates.valid(name) for name in allowed]),
            )
        )
    return rows


async def key_rows(cluster: SecuredCluster, certificates: Certificates, keys: Keys) -> list[Row]:
    """The router's ports where clients show keys, and services the cluster token."""
    token = certificates.bearer((cluster.tls / TOKEN_FILE).read_text().strip())
    by_role = {role: certificates.bearer(key) for role, key in keys.of_role.items()}
    refused = [certificates.bearer(key) for key in (keys.expired, keys.revoked)]
    rows = []
    for port, surface, rule, knock in surfaces(cluster):
        if port.process != "router" or port.kind == METRICS:
            continue
        roles = rule.key_roles
        services = [token] if port.kind == GRPC and rule.allowed & set(SERVICES) else []
        right = [by_role[role] for role in roles] + services
        wrong = [who for role, who in by_role.items() if role not in roles]
        unknown = [certificates.bearer(keys.unknown), certificates.foreign(CLIENTS[0])]
        if not services:
            (wrong if port.kind == GRPC else unknown).append(token)
        rows.append(
            Row(
                f"router {port.kind}, with API keys",
                surface,
                await knock(Credential(tls=False)),
                await knock(certificates.nobody),
                await _all(knock, unknown),
                await _all(knock, refused),
                await _all(knock, wrong),
                await _all(knock, right),
            )
        )
    return rows


def surfaces(cluster: SecuredCluster) -> list[tuple[Port, str, Rule, Knock]]:
    """Everything that can be called, with who may, and how."""
    found: list[tuple[Port, str, Rule, Knock]] = []
    for port in cluster.ports:
        if port.kind == GRPC:
            for service in SERVED[port.process]:
                method = f"/{PACKAGE}.{service}/{METHODS[service]}"
                rule = RULES[f"{PACKAGE}.{service}"]
                found.append((port, service, rule, _grpc(port.address, method)))
        elif port.kind == HTTP:
            found += [(port, path, http_rule(path), _http(port.address, path)) for path in HTTP_SURFACES]
        else:
            found.append((port, "/metrics", METRICS_RULE, _http(port.address, "/metrics")))
    return found


async def all_rows(model: str, folder: Path) -> list[Row]:
    """Both clusters, one after the other. folder: for logs, certificates and keys; new or empty."""
    async with secured_cluster(model, folder / "certificates") as cluster:
        rows = await certificate_rows(cluster, Certificates(cluster.tls, folder / "c"), router=True)
    keys = Keys(folder / "keys.db", KEY_ROLES)
    options = ("--api-keys", str(folder / "keys.db"))
    async with secured_cluster(model, folder / "keys", *options) as cluster:
        certificates = Certificates(cluster.tls, folder / "k")
        rows += await key_rows(cluster, certificates, keys)
    return rows


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [astuple(HEAD), ("---",) * len(astuple(HEAD)), *map(astuple, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written_into(page: str, rows: Sequence[Row]) -> str:
    """The page with the table between its marks. ValueError if there are none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN.strip()} or {END.strip()}")
    return f"{before}{BEGIN}{table(rows)}{END}{after}"


def _grpc(address: str, method: str) -> Knock:
    return lambda credential: call_grpc(address, method, credential)


def _http(address: str, path: str) -> Knock:
    return lambda credential: call_http(address, path, credential)


async def _all(knock: Knock, credentials: Sequence[Credential]) -> str:
    ends = [await knock(credential) for credential in credentials]
    return ", ".join(dict.fromkeys(ends)) or "-"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the page's marks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(all_rows(options.model, Path(folder)))
    print(table(rows), end="")
    if options.write:
        options.write.write_text(written_into(options.write.read_text(), rows))


if __name__ == "__main__":
    main()

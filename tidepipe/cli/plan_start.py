"""What starts a planned cluster: the commands for each of its nodes, or a compose file for one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.defaults import MACRO_MAX

MODEL = "MODEL"
"""Stands in commands for the model's folder or name."""
TEMPLATE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
"""The deployment that compose files are made from; in a checkout alone."""
WORKER_PORT, CONTROLLER_PORT, PREDICTOR_PORT = 7200, 7100, 7300
GRPC_PORT, HTTP_PORT = 7070, 8080
_WIDTH = 78

Place = tuple[int, int]
"""Node and device, from 0."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A cluster to be started: `instances`, each of `stages` x `tensor` devices, on nodes of `gpus` devices.

    settings: of the policy, beside its defaults. targets: TTFT and TPOT, milliseconds; None for offline work.
    """

    stages: int
    tensor: int
    instances: int
    gpus: int
    policy: str
    settings: Mapping[str, object]
    routing: str = ""
    targets: tuple[float, float] | None = None
    model: str = MODEL
    gpu: bool = True
    reuse: bool = True

    @property
    def spans(self) -> bool:
        """Is an instance larger than a node?"""
        return self.stages * self.tensor > self.gpus

    @property
    def shares(self) -> list[int]:
        """Instances of each node; of clusters whose instances fit into one."""
        room = self.gpus // (self.stages * self.tensor)
        return [min(room, self.instances - first) for first in range(0, self.instances, room)]

    @property
    def nodes(self) -> int:
        """Nodes that it needs."""
        return 1 + max(node for stages in self.places() for node, _ in stages)

    def places(self) -> list[list[Place]]:
        """The first device of each stage of each instance: whole instances in a node where they fit."""
        size = self.stages * self.tensor
        if not self.spans:
            room = self.gpus // size
            return [
                [(one // room, one % room * size + stage * self.tensor) for stage in range(self.stages)]
                for one in range(self.instances)
            ]
        slots = self.gpus // self.tensor
        numbers = [
            [one * self.stages + stage for stage in range(self.stages)] for one in range(self.instances)
        ]
        return [[(n // slots, n % slots * self.tensor) for n in stages] for stages in numbers]

    def policy_flags(self) -> list[str]:
        """Of each controller: what the instances run."""
        flags = ["--policy", self.policy]
        if self.settings:
            flags += [
                "--policy-settings",
                ",".join(f"{name}={_text(v)}" for name, v in self.settings.items()),
            ]
        if not self.reuse:
            flags += ["--prefix-caching", "off"]
        return flags

    def target_flags(self) -> list[str]:
        """Of the router."""
        flags = ["--routing", self.routing] if self.routing else []
        if self.instances > MACRO_MAX:
            # Planned as one group, in which every instance may take any request.
            flags += ["--macro-max", str(self.instances)]
        if self.targets:
            flags += ["--ttft-ms", f"{self.targets[0]:g}", "--tpot-ms", f"{self.targets[1]:g}"]
        return flags


def commands(cluster: Deployment, files: Sequence[str] = ()) -> str:
    """A script for a shell of each node, with NODE1, NODE2 .. as their addresses.

    files: instead of a cluster that serves, a batch's IN and OUT; of clusters on one node.
    """
    if cluster.spans:
        return "\n".join(_by_hand(cluster))
    own = [
        *(["--engine", "vllm", "--tensor-parallel", str(cluster.tensor)] if cluster.tensor > 1 else []),
        *(["--device", "cuda"] if cluster.gpu and cluster.tensor == 1 else []),
        *cluster.policy_flags(),
    ]
    shares = cluster.shares
    if len(shares) == 1:
        head = ["batch", files[0], "-o", files[1]] if files else ["up"]
        http = [] if files else ["--http-port", str(HTTP_PORT)]
        return _folded(_start(cluster, head, shares[0], own, [*cluster.target_flags(), *http]))
    hosts = " ".join(f"--host ${{NODE{n + 1}}}" for n in range(len(shares)))
    lines = [
        "# The addresses of the nodes; the model's folder and certs/ on each of them.",
        *(f"NODE{n + 1}=10.0.0.{n + 1}" for n in range(len(shares))),
        _folded(f"tidepipe certs make certs {hosts}".split(" ")),
    ]
    for node, share in enumerate(shares):
        lines.append(f"\n# on NODE{node + 1}{'' if node else ', first'}")
        here = ["--host", f"${{NODE{node + 1}}}", "--tls", "certs"]
        if node == 0:
            here += [*cluster.target_flags(), "--grpc-port", str(GRPC_PORT), "--http-port", str(HTTP_PORT)]
        else:
            # The router's flags are the first one's.
            here += ["--router", f"${{NODE1}}:{GRPC_PORT}"]
        lines.append(_folded(_start(cluster, ["up"], share, own, here)))
    return "\n".join(lines)


def compose(cluster: Deployment) -> str:
    """A compose file for one machine, made from the deployment's; ConfigError says why there is none."""
    if not cluster.policy:
        raise ConfigError("there is no compose file for what is simulated alone")
    if cluster.nodes > 1:
        raise ConfigError(
            f"a compose file is for one machine, and this cluster needs {cluster.nodes}; use the commands"
        )
    if cluster.tensor > 1:
        raise ConfigError(
            "tensor-parallel instances run in vLLM, which the images of deploy/ lack; use the commands"
        )
    try:
        text = TEMPLATE.read_text(encoding="utf-8")
    except OSError:
        raise ConfigError(
            f"compose files are made from {TEMPLATE}, which only a checkout has; use the commands"
        ) from None
    router, networks = "", ""
    for flag in _pairs(cluster.target_flags()):
        router += f"      - {flag}\n"
    instances = "".join(_services(cluster))
    for one in range(cluster.instances):
        networks += f"  node-{one}:\n    internal: true\n"
    text = _cut(text, "#", "x-credentials:", _head(cluster))
    text = _cut(text, "  controller-a:\n", "  prometheus:\n", instances)
    text = _cut(text, "  node-a:\n", "secrets:\n", f"{networks}\n")
    names = ", ".join(["control", *(f"node-{one}" for one in range(cluster.instances))])
    text = text.replace("networks: [control, node-a, node-b]", f"networks: [{names}]")
    return text.replace(
        "      - --predictor=predictor:7000\n", f"      - --predictor=predictor:7000\n{router}", 1
    )


def _start(
    cluster: Deployment, head: Sequence[str], instances: int, own: Sequence[str], more: Sequence[str]
) -> list[str]:
    size = ["--stages", str(cluster.stages), "--instances", str(instances)]
    return ["tidepipe", *head, "--model", cluster.model, *size, *own, *more]


def _by_hand(cluster: Deployment) -> Iterator[str]:
    places = cluster.places()
    nodes = range(cluster.nodes)
    hosts = " ".join(f"--host ${{NODE{n + 1}}}" for n in nodes)
    yield "# The addresses of the nodes; the model's folder and certs/ on each of them."
    yield from (f"NODE{n + 1}=10.0.0.{n + 1}" for n in nodes)
    yield _folded(f"tidepipe certs make certs {hosts}".split(" "))
    yield 'tls() { echo "--tls-cert certs/$1.pem --tls-key certs/$1.key --tls-ca certs/ca.pem"; }'
    model = ["--model", cluster.model]
    for node in nodes:
        devices = sorted(device for stages in places for n, device in stages if n == node)
        yield f"\n# on NODE{node + 1}"
        yield f"for device in {' '.join(map(str, devices))}; do"
        port = f"${{NODE{node + 1}}}:$(({WORKER_PORT} + device))"
        device = ["--device", "cuda:$device"] if cluster.gpu else []
        words = ["python", "-m", "stage_worker", "--listen", port, *device, *model]
        yield "    " + _folded(words, 4, "stage-worker")
        yield "done"
    first = "${NODE1}"
    yield "\n# on NODE1, besides"
    predictor, router = f"{first}:{PREDICTOR_PORT}", f"{first}:{GRPC_PORT}"
    yield _folded(["python", "-m", "predictor", "--listen", predictor], tls="predictor")
    doors = ["--listen", router, "--http", f"{first}:{HTTP_PORT}", *model, "--predictor", predictor]
    yield _folded(["python", "-m", "router", *doors, *cluster.target_flags()], tls="router")
    for one, stages in enumerate(places):
        at = ",".join(f"${{NODE{node + 1}}}:{WORKER_PORT + device}" for node, device in stages)
        told = ["--listen", f"{first}:{CONTROLLER_PORT + one}", "--instance-id", f"instance-{one}"]
        told += ["--stages", at, "--router", router, "--predictor", predictor, *cluster.policy_flags()]
        yield _folded(["python", "-m", "controller", *told], tls="controller")


def _folded(words: Sequence[str], indent: int = 0, tls: str = "") -> str:
    """One command, cut before flags into lines that terminals show whole. tls: in the background, as whom."""
    parts: list[str] = []
    for word in map(_quoted, words):
        if parts and not word.startswith("-") and (parts[-1].startswith("-") or parts[-1] in _HEADS):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    if tls:
        parts.append(f"$(tls {tls}) &")
    lines = [" " * indent + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) > _WIDTH:
            lines[-1] += " \\"
            lines.append(" " * (indent + 4) + part)
        else:
            lines[-1] += f" {part}"
    return "\n".join(lines).lstrip()


_HEADS = ("tidepipe", "python")
_OWN = re.compile(r"cuda:\$device|(,?\$\{NODE\d+\}(:(\d+|\$\(\(\d+ \+ device\)\)))?)+")
"""Words that are ours, in which a shell is to put in what stands for something."""


def _quoted(word: str) -> str:
    """For a shell, which is to put in NODE1 and the like."""
    return word if _OWN.fullmatch(word) else shlex.quote(word)


def _services(cluster: Deployment) -> Iterator[str]:
    own = ["--listen=0.0.0.0:7000", "--metrics-port=9090"]
    for one, stages in enumerate(cluster.places()):
        workers = [f"worker-{one}-{stage}" for stage in range(len(stages))]
        flags = [
            *("controller", *own, f"--advertise=controller-{one}:7000", f"--instance-id=instance-{one}"),
            *("--stages=" + ",".join(f"{name}:7000" for name in workers), "--router=router:7000"),
            *("--predictor=predictor:7000", *_pairs(cluster.policy_flags())),
        ]
        needed = "".join(
            f"      {name}: {{condition: service_healthy}}\n" for name in ("predictor", *workers)
        )
        yield (
            f"  controller-{one}:\n    <<: *service\n    command:\n"
            + "".join(f"      - {flag}\n" for flag in flags)
            + f"    networks: [control, node-{one}]\n    healthcheck: *health\n    secrets:\n"
            "      - ca\n      - token\n"
            "      - {source: controller-cert, target: cert}\n"
            "      - {source: controller-key, target: key}\n"
            f"    depends_on:\n      router: {{condition: service_started}}\n{needed}\n"
        )
        for name, (_, device) in zip(workers, stages, strict=True):
            yield f"  {name}:\n    <<: *worker\n"
            if cluster.gpu:
                # A whole device, and all that is free of its memory.
                yield f"    command: [{', '.join(['stage_worker', *own, '--model=/models/model'])}]\n"
                yield (
                    "    deploy: {resources: {reservations: {devices: [{driver: nvidia, "
                    f'device_ids: ["{device}"], capabilities: [gpu]}}]}}}}}}\n'
                )
            yield f"    networks: [node-{one}]\n    healthcheck: *health\n\n"


def _head(cluster: Deployment) -> str:
    return (
        f"# {cluster.instances} x {cluster.stages} stages, policy {cluster.policy}, by `tidepipe plan` from "
        "deploy/compose.yaml.\n"
        "#\n"
        "#   export TIDEPIPE_MODEL_DIR=/path/to/model TIDEPIPE_SECRETS_DIR=/path/to/secrets TORCH_INDEX=...\n"
        "#   docker compose --project-directory deploy -f THIS_FILE up -d --build\n"
        "#\n"
        "# What these are: deploy/README.md.\n\n"
    )


def _cut(text: str, begin: str, end: str, instead: str) -> str:
    first = text.index(begin)
    return text[:first] + instead + text[text.index(end, first) :]


def _pairs(flags: Sequence[str]) -> list[str]:
    return [f"{name}={value}" for name, value in zip(flags[::2], flags[1::2], strict=True)]


def _text(value: object) -> str:
    return re.sub(r"^(True|False)$", lambda found: {"True": "on", "False": "off"}[found[0]], str(value))

"""Events and actions of the routing scheduler: what it hears, and what it wants done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from router.scheduler.choice import Choice
from router.scheduler.instance_report import InstanceReport
from router.scheduler.mitosis import Move
from router.scheduler.request import Decoding, RouteRequest
from router.scheduler.roles import Role
from router.scheduler.scaling import ScalingRules
from router.scheduler.view import InstanceFacts

# -- events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstanceJoined:
    """An instance is there. It gets requests after its first report."""

    facts: InstanceFacts


@dataclass(frozen=True, slots=True)
class InstanceReported:
    """Its newest status."""

    instance_id: str
    status: InstanceReport


@dataclass(frozen=True, slots=True)
class InstanceReconnected:
    """The connection to it was lost and is back: it counts accepted sequences from 0 again."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class InstanceDraining:
    """It shall get nothing new (by hand, or for contraction)."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class InstanceResumed:
    """It takes requests again after all."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class InstancesStarting:
    """So many instances are being started: they were asked for, and have not joined yet."""

    count: int


@dataclass(frozen=True, slots=True)
class InstanceLeft:
    """It has drained, or is lost. What it had arrives anew, if the driver says so."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request needs an instance: a new one, or one that an instance refused or lost."""

    request: RouteRequest


@dataclass(frozen=True, slots=True)
class RequestWithdrawn:
    """Cancelled. instance_id: where it was sent, empty while it is pending."""

    request_id: str
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class PromptBegun:
    """The prompt of a request is being computed that was to pass on (`Route`), and its blocks can go ahead.

    instance_id: where it is.
    """

    request: RouteRequest
    instance_id: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A request got its first token so long after its arrival.

    request: as it would arrive now, if it can go on elsewhere. instance_id: where it is.
    """

    ttft_s: float
    request: RouteRequest | None = None
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """An instance has come to the end of an answer of so many tokens, to a prompt of so many."""

    instance_id: str
    output_tokens: int
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: deadlines, retries, automatic scaling. Ten times a second does.

    decoding: all that can go on elsewhere, under policies that want to know (RoutingScheduler.flows).
    """

    decoding: Sequence[Decoding] = ()


@dataclass(frozen=True, slots=True)
class SplitMacro:
    """By hand. count: instances of the new macro instance; 0 for N_l."""

    macro_id: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class MergeMacros:
    """By hand: all of `other` joins `into`."""

    into: str
    other: str


@dataclass(frozen=True, slots=True)
class MoveInstance:
    """By hand."""

    instance_id: str
    target: str


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """All macro instances route by the policy of that name from now on."""

    name: str


@dataclass(frozen=True, slots=True)
class SetScaling:
    """Scale by itself by these rules from now on; None: people do."""

    rules: ScalingRules | None


Event = (
    InstanceJoined | InstanceReported | InstanceReconnected | InstanceDraining | InstanceResumed
    | InstancesStarting | InstanceLeft | RequestArrived | RequestWithdrawn | PromptBegun | FirstToken
    | AnswerEnded | Tick | SplitMacro | MergeMacros | MoveInstance | SetPolicy | SetScaling
)  # fmt: skip

# -- actions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """Send the request there. passes_on: it will probably go on elsewhere when its prompt is done."""

    request: RouteRequest
    macro_id: str
    choice: Choice
    passes_on: bool = False


@dataclass(frozen=True, slots=True)
class QueueFull:
    """Refuse the request; a retry makes sense after so many seconds."""

    request: RouteRequest
    pending: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Expired:
    """The request waited in the queue until its deadline."""

    request: RouteRequest
    choice: Choice


@dataclass(frozen=True, slots=True)
class Shed:
    """Refuse the request: those ahead of it will take longer than it may wait.

    ahead: how many they are. wait_s: until its turn, and so when a retry makes sense.
    """

    request: RouteRequest
    ahead: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Regrouped:
    """Instances changed hands."""

    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class AddInstance:
    """Start one, or several at once."""

    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True, slots=True)
class DrainInstance:
    """Let it finish what it has, then stop it."""

    instance_id: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HandOver:
    """Have a request that an instance has go on at another one, with its KV blocks where they can be fetched.

    It leaves between two tokens, and arrives anew (`RouteRequest.brought`). target: where it is to go on if
    that takes it then; empty: wherever there is room.
    """

    request_id: str
    source: str
    target: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FetchAhead:
    """Have the KV blocks of a request fetched by the instance where it is to go on, while its prompt is
    computed at its source. What becomes of it is decided when its first token is there."""

    request_id: str
    source: str
    target: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoleMoved:
    """An instance has another share of prefill from now on."""

    instance_id: str
    role: Role


Action = (
    Route | QueueFull | Expired | Shed | Regrouped | AddInstance | DrainInstance | HandOver | FetchAhead
    | RoleMoved
)  # fmt: skip

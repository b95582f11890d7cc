"""Prefill and decode on instances of their own (FuDG), with the KV cache sent over shared links.

Prompts never wait for decode instances, so time can be gone through thrice: all prefill instances, all links,
all decode instances. Three simplifications, all in favour of FuDG: a transfer begins with the prompt's
computation (layer by layer), so that only what the link cannot keep up with is waited for; a prefill instance
has room for every cache that waits for its link; transfers do not disturb all-reduces on the same bus.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from simulator.cluster_spec import ClusterSpec
from simulator.fast_forward_instance import FastForwardInstance, InstanceRules
from simulator.job import NOT_YET, Job
from simulator.transfers import Link, instances_per_node, token_bytes
from tidepipe_common.errors import ConfigError


def run_disaggregated(
    spec: ClusterSpec,
    jobs: Sequence[Job],
    *,
    prefill: int,
    tensor: int,
    budget: int,
    between_nodes: bool,
) -> None:
    """Serve the jobs. prefill: instances that prefill, of each node, or of all if between nodes."""
    if any(job.following is not None for job in jobs):
        raise ConfigError("disaggregation is simulated for requests that do not wait for others' answers")
    sized = spec.split(tensor)
    cost, kv_tokens, stages = sized.latency(), sized.kv_tokens(), spec.stages
    per_node = instances_per_node(sized)
    rules = InstanceRules(budget=budget, prefill_only=True, dispatch_s=sized.dispatch_s)
    groups: list[list[int]] = []  # instances that may share a request
    if between_nodes:
        groups.append(list(range(sized.instances)))
    else:
        groups += [
            list(range(first, min(first + per_node, sized.instances)))
            for first in range(0, sized.instances, per_node)
        ]
    computing = {
        one: FastForwardInstance(f"p{one}", rules, cost, stages, kv_tokens)
        for group in groups
        for one in group[:prefill]
    }
    home: dict[int, int] = {}
    sent = dict.fromkeys(computing, 0)
    for job in jobs:
        for instance in computing.values():
            instance.advance(job.arrival)
        # Of those that are idle the one that has had least: its decode instances and its link have had, too.
        chosen = min(computing, key=lambda one: (computing[one].unfinished_tokens, sent[one]))
        home[job.index] = chosen
        sent[chosen] += job.prompt + job.expected
        computing[chosen].submit(job, job.arrival)
    for instance in computing.values():
        instance.drain()

    rate = sized.network_bytes_per_s if between_nodes else sized.bus_bytes_per_s
    size = token_bytes(sized)
    # Between nodes each node has one way out and one way in; within a node each prefill instance has its bus.
    out = {one: Link(rate) for one in ({c // per_node for c in computing} if between_nodes else computing)}
    into: dict[int, Link] = {}
    rules = replace(rules, prefill_only=False)
    decoding = {
        one: FastForwardInstance(f"d{one}", rules, cost, stages, kv_tokens)
        for group in groups
        for one in group[prefill:]
    }
    partners = {one: group[prefill:] for group in groups for one in group[:prefill]}
    on_the_way = dict.fromkeys(decoding, 0)
    # (time, job's index, job, its prefill instance, its decode instance once that is chosen)
    events: list[tuple[float, int, Job, int, int | None]] = []
    for job in sorted((job for job in jobs if job.finished == NOT_YET), key=lambda job: job.first):
        source = home[job.index]
        through = cost.linear_s(job.prompt) * stages
        link = out[source // per_node if between_nodes else source]
        arrived = link.send(job.prompt * size, job.first, through)
        events.append((arrived, job.index, job, source, None))
    heapq.heapify(events)
    while events:
        now, _, job, source, target = heapq.heappop(events)
        if target is not None:
            on_the_way[target] -= job.prompt
            decoding[target].deliver(job, now)
            continue
        for one in partners[source]:
            decoding[one].advance(now)
        target = min(partners[source], key=lambda one: decoding[one].held_tokens + on_the_way[one])
        on_the_way[target] += job.prompt
        if between_nodes:
            way_in = into.setdefault(target // per_node, Link(rate))
            # It came at the sender's rate; several senders may meet at one receiver.
            now = way_in.send(job.prompt * size, now, job.prompt * size / rate)
        heapq.heappush(events, (now, job.index, job, source, target))
    for instance in decoding.values():
        instance.drain()

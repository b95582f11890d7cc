"""Scrapes every process of a real cluster: figures as what was done, names as in the docs."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from launcher.scrape_targets import FILE_NAME
from tidepipe.client.async_client import AsyncClient
from tidepipe_common.types.sampling import SamplingParams

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

MANY, PROMPT, ANSWER = 20, 30, 7
FOUND = 16
REQUESTS = MANY + 1
TOKENS = MANY * ANSWER + 1
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
PROCESS_NAMES = "process_"
"""prometheus_client's own, which the docs mention as a group."""


class Scrape:
    """One process's metrics: the names of its families, and sums over samples."""

    def __init__(self, address: str) -> None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        self.families = list(text_string_to_metric_families(text))
        self.types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
        self.names = {name for name in self.types if not name.endswith("_created")}

    def sum(self, sample_name: str, **labels: str) -> float:
        """Over all samples of that name whose labels include these."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == sample_name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no sample {sample_name} {labels}"
        return sum(found)


async def test_a_cluster_counts_what_it_did(model_path: Path, tmp_path: Path) -> None:
    config = ClusterConfig(
        model=str(model_path), stages=2, executor="emulated", metrics=True, run_dir=str(tmp_path)
    )
    # Emulated stages never draw an end token; who ignores it needs no prediction.
    sampling = SamplingParams(temperature=0, max_tokens=ANSWER)
    async with LocalCluster(config) as cluster:
        async with AsyncClient(cluster.grpc_address) as client:
            prompts = [[100 + number] * PROMPT for number in range(MANY)]
            results = [result async for result in client.generate_batch(prompts, sampling)]
            # Only answers that may end by themselves need a prediction.
            await client.generate(prompts[0], temperature=0, max_tokens=1)
        assert all(result.error is None for result in results)
        targets = json.loads((tmp_path / FILE_NAME).read_text())
        scrapes = {entry["labels"]["process"]: Scrape(entry["targets"][0]) for entry in targets}
        gateway = Scrape(cluster.http_address)

    router, controller = scrapes["router"], scrapes["controller-0"]
    assert router.sum("request_success_total", finished_reason="length") == REQUESTS
    assert router.sum("request_success_total") == REQUESTS
    assert router.sum("prompt_tokens_total") == REQUESTS * PROMPT
    assert router.sum("generation_tokens_total") == TOKENS
    assert router.sum("time_to_first_token_seconds_count") == REQUESTS
    assert router.sum("e2e_request_latency_seconds_count") == REQUESTS
    firsts_and_others = router.sum("time_to_first_token_seconds_count") + router.sum(
        "inter_token_latency_seconds_count"
    )
    # Tokens that came together with an answer's first one have no time of their own.
    assert REQUESTS < firsts_and_others <= TOKENS
    assert 0 < router.sum("time_to_first_token_seconds_sum") < router.sum("e2e_request_latency_seconds_sum")
    assert router.sum("tidepipe_router_requests") == 0
    assert router.sum("grpc_server_handled_total", grpc_method="Generate", grpc_code="OK") == REQUESTS
    assert gateway.sum("request_success_total") == REQUESTS

    assert controller.sum("tidepipe_output_tokens_total") == TOKENS
    # The last prompt had come before: its first block of 16 tokens was found.
    assert controller.sum("prefix_cache_queries_total") == REQUESTS * PROMPT
    assert controller.sum("prefix_cache_hits_total") == FOUND
    assert controller.sum("tidepipe_saved_tokens_total", of="prompt") == FOUND
    assert controller.sum("tidepipe_saved_tokens_total", of="recomputation") == 0
    assert controller.sum("tidepipe_evicted_blocks_total") == 0
    findable = controller.sum("tidepipe_findable_blocks")
    assert findable == controller.sum("tidepipe_kept_blocks") >= MANY
    assert controller.sum("tidepipe_prefill_tokens_total") == REQUESTS * PROMPT - FOUND
    assert controller.sum("tidepipe_sequences_finished_total") == REQUESTS
    assert controller.sum("num_requests_running") == controller.sum("num_requests_waiting") == 0
    assert controller.sum("kv_cache_usage_perc") == 0
    assert controller.sum("tidepipe_epoch") == 1
    assert controller.sum("tidepipe_recoveries_total") == 0
    assert controller.sum("tidepipe_phase") == 1
    assert controller.sum("tidepipe_phase", phase="idle") == 1
    assert controller.sum("tidepipe_phase_switches_total", before="idle") >= 1
    assert controller.sum("grpc_server_handled_total", grpc_service="tidepipe.v1.ControllerService") >= 1

    stages = [scrapes["stage-worker-0-0"], scrapes["stage-worker-0-1"]]
    computed = REQUESTS * PROMPT - FOUND + TOKENS - REQUESTS
    assert [stage.sum("tidepipe_stage_tokens_total") for stage in stages] == [computed, computed]
    assert all(stage.sum("tidepipe_stage_busy_seconds_total") > 0 for stage in stages)
    assert stages[0].sum("tidepipe_stage_activation_bytes_total") == computed * 576 * 2
    assert stages[1].sum("tidepipe_stage_activation_bytes_total") == 0
    predicted = scrapes["predictor"].sum("tidepipe_predictor_predictions_total")
    assert predicted + controller.sum("tidepipe_predictor_fallbacks_total") >= 1

    exported = {
        name
        for scrape in (*scrapes.values(), gateway)
        for name in scrape.names
        if not name.startswith(PROCESS_NAMES)
    }
    documented = set(re.findall(r"^\| `([a-z0-9_]+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert exported == documented, {
        "not documented": sorted(exported - documented),
        "not exported": sorted(documented - exported),
    }

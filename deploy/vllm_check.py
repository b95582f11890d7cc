"""TidePipe tried with a real vLLM, of CPUs, in environments of their own: `make vllm-check`.

vLLM is installed once into the cache folder, where `python -m bench.peers` has it, too; beside it, in an
environment that sees its packages, what the extra `vllm` and the tests need, once for each state of
pyproject.toml; and each time this checkout's wheel. There run the unit tests that skip elsewhere. Then the
wheel in earnest: vLLM's own scheduler and ours give equal tokens as a pipeline of two; `tidepipe up --engine
vllm` gives them, too, also where a worker is killed in the middle.

What cannot be tried here (no room, no index, no time left after installing) is said in one sentence, and is
no failure.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.peers.places import VLLM, Places, has, set_up
from deploy.wheel_check import ROOT, Environment, build
from tidepipe_common.errors import TidePipeError
from tidepipe_common.model_source import cache_dir, resolve_model

WITHIN_S = 480.0
TESTS_S = 260.0
"""To be left of that when all is installed: the tests take 200 s on two cores, and installing 175 s."""
CLUSTER_S = 100.0
"""For a cluster that starts, and starts its workers again."""
ROOM_GIB = 5.0
"""Memory: two workers, the process that schedules, and what starts them."""
DISK_GIB = 6.0
TEST_PACKAGES = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")
UNIT_TESTS = "tests/unit/controller/test_vllm_*.py"
OURS = "tidepipe: policy auto on cpu"
"""What our scheduler says in vLLM's log when it begins."""

LONGEST, STEP = 1024, 512
"""Tokens of a sequence, and of a step."""
ENGINE = {"max_model_len": LONGEST, "compilation_config": {"mode": 2, "backend": "eager"}}
"""Traced as ever, or vLLM computes no pipeline on CPUs; not compiled, which takes longer than all answers."""
TOKENS = 40
TEXTS = (
    "The capital of France is",
    "The tide turns twice a day, because",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea, there lived",
    "One, two, three,",
    "Water boils at",
    "The largest planets of the solar system are",
    "To bake bread, one needs",
)

LLM = """
import json, sys

def main():
    from vllm import LLM, SamplingParams

    asked = json.loads(sys.argv[1])
    llm = LLM(asked["model"], dtype="float32", pipeline_parallel_size=2, **asked["engine"])
    sampling = SamplingParams(temperature=0.0, max_tokens=asked["tokens"], ignore_eos=True)
    answers = llm.generate(asked["texts"], sampling, use_tqdm=False)
    print("answers", json.dumps([[one.prompt_token_ids, one.outputs[0].token_ids] for one in answers]))

if __name__ == "__main__":
    main()
"""

Answer = tuple[list[int], list[int]]
"""Tokens of a prompt, and of what is said to it."""


class CannotTryError(Exception):
    """Something that this needs cannot be had here; says what."""


class Clock:
    """Seconds that are left."""

    def __init__(self, within_s: float) -> None:
        self._began = time.monotonic()
        self._within_s = within_s

    @property
    def left_s(self) -> float:
        """Never below 1."""
        return max(1.0, self._within_s - self.spent_s)

    @property
    def spent_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache_dir() / "peers", help="of the environments")
    parser.add_argument("--model", default="smollm2-135m", help="what is served")
    parser.add_argument("--within-s", type=float, default=WITHIN_S, help="seconds for all of it")
    options = parser.parse_args()
    clock = Clock(options.within_s)
    with tempfile.TemporaryDirectory(prefix="tidepipe-vllm-") as folder:
        root = Path(folder)
        home = root / "home"
        home.mkdir()
        wheel = build(root / "dist")
        try:
            environment = _environment(options.folder, options.model, wheel, root / "trial", home, clock)
        except CannotTryError as reason:
            print(f"vLLM is not tried: {reason}")
            return 0
        print(f"vLLM is there after {clock.spent_s:.0f} s", flush=True)
        try:
            _unit_tests(environment, clock)
            _check_answers(environment, home, options.model, clock)
        except subprocess.TimeoutExpired as error:
            text = f"not done within {options.within_s:g} s, {error.timeout:.0f} s of them for {error.cmd[0]}"
            if not _crowded():
                sys.exit(text)
            print(f"vLLM is not tried to the end: {text}, on a machine that others keep busy")
            return 0
        except CannotTryError as reason:
            print(f"vLLM is not tried to the end: {reason}")
            return 0
    print(f"vLLM answers with us as it does alone ({clock.spent_s:.0f} s)", flush=True)
    return 0


def _crowded() -> bool:
    """Do others want more of this machine than it has? Then what takes too long need not hang."""
    return os.getloadavg()[1] > 2.0 * (os.cpu_count() or 1) + 2.0


# -- where it runs ------------------------------------------------------------------------------------


def _environment(folder: Path, model: str, wheel: Path, trial: Path, home: Path, clock: Clock) -> Environment:
    """vLLM, what the extra names, and the wheel, each over the one before; CannotTryError if it cannot be."""
    available = psutil.virtual_memory().available / 2**30
    if available < ROOM_GIB:
        raise CannotTryError(f"{ROOM_GIB:g} GiB of memory are needed, {available:.1f} are free")
    places = Places(folder, model)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "vllm.lock"):
        if not has(folder / "vllm", VLLM) and shutil.disk_usage(folder).free < DISK_GIB * 2**30:
            raise CannotTryError(f"{DISK_GIB:g} GiB are needed on the disk of {folder}")
        try:
            set_up(places, {"vllm"}, clock.left_s - TESTS_S)
        except subprocess.TimeoutExpired as error:
            raise CannotTryError(f"{VLLM} was not installed within {error.timeout:.0f} s") from None
        except subprocess.CalledProcessError:
            raise CannotTryError(f"{VLLM} cannot be installed; what pip said of it is above") from None
        beside = _extra(folder, places.vllm_python, wheel, clock)
    if clock.left_s < TESTS_S:
        raise CannotTryError(f"after installing {clock.left_s:.0f} s are left, less than {TESTS_S:g} s")
    environment = _over(places.vllm_python, [beside, _packages(folder / "vllm")], trial, home)
    environment.pip("install", "--quiet", "--no-deps", str(wheel))
    environment.variables |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return environment


def _extra(folder: Path, python: Path, wheel: Path, clock: Clock) -> Path:
    """The packages that `pip install 'tidepipe[vllm]'` adds to vLLM's, and those of the tests."""
    tests = [f"{name}=={version(name)}" for name in TEST_PACKAGES]
    project = (ROOT / "pyproject.toml").read_bytes()
    name = "vllm-extra-" + hashlib.sha256(project + "".join([VLLM, *tests]).encode()).hexdigest()[:12]
    made = folder / name / "whole"
    if made.exists():
        return _packages(folder / name)
    for old in folder.glob("vllm-extra-*"):
        shutil.rmtree(old)
    environment = _over(python, [_packages(folder / "vllm")], folder / name, folder)
    print(f"installing what the extra `vllm` names into {folder / name}", flush=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "--disable-pip-version-check"]
    try:
        subprocess.run(
            [*pip, "install", "--quiet", f"tidepipe[vllm] @ {wheel.as_uri()}", *tests],
            check=True,
            timeout=clock.left_s,
        )
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "tidepipe"], check=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise CannotTryError(f"what the extra `vllm` names cannot be installed here ({error})") from None
    made.touch()
    return _packages(folder / name)


def _over(python: Path, packages: Sequence[Path], folder: Path, home: Path) -> Environment:
    """An environment of the same Python that sees these packages, the first before the others."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    environment = Environment(folder, home)
    (environment.packages / "beneath.pth").write_text(
        "".join(f"{one}\n" for one in packages), encoding="utf-8"
    )
    return environment


def _packages(folder: Path) -> Path:
    (found,) = folder.glob("lib/python3*/site-packages")
    return found


@contextmanager
def _alone(path: Path) -> Any:
    """One at a time makes the environments."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- what is tried ------------------------------------------------------------------------------------


def _unit_tests(environment: Environment, clock: Clock) -> None:
    """Those that need vLLM, on the checkout."""
    files = sorted(map(str, ROOT.glob(UNIT_TESTS)))
    command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ROOT, *files]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment.variables, timeout=clock.left_s, check=False
    )
    if done.returncode != 0:
        sys.exit(f"the unit tests that need vLLM failed ({done.returncode})")


def _check_answers(environment: Environment, home: Path, model: str, clock: Clock) -> None:
    """Equal tokens, whoever schedules, and whatever dies."""
    script, timeline = home / "llm.py", home / "timeline.jsonl"
    script.write_text(LLM, encoding="utf-8")
    own, said = _ask_llm(environment, script, model, {}, clock)
    if OURS in said:
        sys.exit("our scheduler was there without being asked for")
    environment.variables["TIDEPIPE_VLLM_TIMELINE"] = str(timeline)
    ours, said = _ask_llm(environment, script, model, {"scheduler_cls": "tidepipe.vllm.Scheduler"}, clock)
    del environment.variables["TIDEPIPE_VLLM_TIMELINE"]
    if OURS not in said:
        sys.exit(f"our scheduler was not there:\n{said}")
    _same("vLLM with our scheduler", ours, own)
    environment.run(environment.python, "-m", "tidepipe.vllm", timeline, home / "trace.json")
    print(f"{len(own)} answers are the same with our scheduler in vLLM", flush=True)
    if clock.left_s < CLUSTER_S:
        raise CannotTryError(f"{clock.left_s:.0f} s are left, and a cluster needs up to {CLUSTER_S:g} s")
    cluster = ("--model", model, "--engine", "vllm", "--stages", "2", "--dtype", "float32")
    more = ("--engine-args", json.dumps(ENGINE), "--prefill-tokens", str(STEP))
    with environment.up(*cluster, *more) as address, httpx.Client(
        base_url=f"http://{address['http']}", timeout=clock.left_s, trust_env=False
    ) as http, ThreadPoolExecutor(len(own)) as pool:  # fmt: skip
        asked = [pool.submit(_ask, http, prompt) for prompt, _ in own]
        _same("`tidepipe up --engine vllm`", [one.result() for one in asked], own)
        asked = [
            pool.submit(_ask, http, prompt, kill_after=4 if i == 0 else 0)
            for i, (prompt, _) in enumerate(own)
        ]
        _same("an instance that lost a worker", [one.result() for one in asked], own)
    print("and with vLLM's workers as stages, also where one is killed in the middle", flush=True)


def _ask_llm(
    environment: Environment, script: Path, model: str, more: Mapping[str, Any], clock: Clock
) -> tuple[list[Answer], str]:
    """What vLLM answers as a pipeline of two, and what it logs."""
    path = str(resolve_model(model))
    engine = {**ENGINE, "max_num_batched_tokens": STEP, **more}
    asked = {"model": path, "texts": TEXTS, "tokens": TOKENS, "engine": engine}
    cores = sorted(os.sched_getaffinity(0))
    environment.variables["VLLM_CPU_OMP_THREADS_BIND"] = f"{cores[0]}|{cores[-1]}"
    done = environment.run(environment.python, script, json.dumps(asked), limit_s=clock.left_s)
    del environment.variables["VLLM_CPU_OMP_THREADS_BIND"]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("answers "))
    answers = json.loads(line.removeprefix("answers "))
    return [(prompt, output) for prompt, output in answers], done.stdout + done.stderr


def _ask(http: httpx.Client, prompt: list[int], kill_after: int = 0) -> Answer:
    """A streamed answer. kill_after: a worker of vLLM's is killed after so many pieces of it."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    output: list[int] = []
    pieces = 0
    with http.stream(
        "POST", "/v1/completions", json={**body, "stream": True, "return_token_ids": True}
    ) as reply:
        if reply.status_code != 200:
            sys.exit(f"HTTP {reply.status_code}: {reply.read()!r}")
        for line in reply.iter_lines():
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                sys.exit(f"an answer failed: {event}")
            for choice in event["choices"]:
                output += choice.get("token_ids") or []
            pieces += 1
            if pieces == kill_after:
                _kill_worker()
    return prompt, output


def _kill_worker() -> None:
    """One of those that compute, without warning."""
    workers = [
        one for one in psutil.Process().children(recursive=True) if "Worker" in " ".join(one.cmdline())
    ]
    if not workers:
        sys.exit("no worker of vLLM's was found to kill")
    workers[-1].kill()


def _same(who: str, found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one != other:
            sys.exit(f"{who} answers {one[0]} with\n{one[1]}, vLLM alone with\n{other[1]}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TidePipeError as error:
        sys.exit(f"error: {error}")

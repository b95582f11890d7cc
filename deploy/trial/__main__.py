"""`python -m deploy.trial --model FOLDER`: the compose deployment, really launched and really hurt.

Makes a container engine, base images and wheels by itself, so that no registry is needed; root and Debian's
docker.io, docker-compose, iptables and debootstrap are. Exit code 0: no request was lost and no service
that was not hurt restarted, or, with a line that says so, no engine can be had here. 1: otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.trial.deployment import GRPC, Deployment, Outcome
from deploy.trial.engine import EngineUnavailableError, check, running_engine
from deploy.trial.images import BASES, Base, build_images, fill_wheelhouse, make_base_images
from tidepipe_common.model_source import cache_dir

Load = subprocess.Popen[bytes]
BATCH_S = 420.0
IN_FLIGHT_S = 3.0
"""From the start of a batch to its fault: some answers are being written then."""
PAUSE_S = 15.0
CUT_S = 15.0
RESTART_ORDER = (
    "worker-a-0", "worker-a-1", "worker-b-0", "worker-b-1",
    "predictor", "controller-a", "controller-b", "router",
)  # fmt: skip
"""As deploy/README.md says."""


def crash_worker(deployment: Deployment) -> None:
    """A stage worker dies."""
    deployment.crash("worker-a-1")


def crash_controller(deployment: Deployment) -> None:
    """A controller dies."""
    deployment.crash("controller-a")


def pause_worker(deployment: Deployment) -> None:
    """A stage worker stands still, then goes on with stale plans."""
    deployment.pause("worker-b-0")
    time.sleep(PAUSE_S)
    deployment.resume("worker-b-0")


def cut_controller(deployment: Deployment) -> None:
    """A controller loses router and predictor, then gets them back."""
    deployment.cut("controller-b", "control")
    time.sleep(CUT_S)
    deployment.heal("controller-b", "control")


def cut_worker(deployment: Deployment) -> None:
    """A stage loses its controller and its neighbour, then gets them back."""
    deployment.cut("worker-a-0", "node-a")
    time.sleep(CUT_S)
    deployment.heal("worker-a-0", "node-a")


FAULTS: dict[str, tuple[Callable[[Deployment], None], tuple[str, ...]]] = {
    "worker killed": (crash_worker, ("worker-a-1",)),
    "controller killed": (crash_controller, ("controller-a",)),
    f"worker paused {PAUSE_S:g} s": (pause_worker, ()),
    f"controller cut off {CUT_S:g} s": (cut_controller, ()),
    f"worker cut off {CUT_S:g} s": (cut_worker, ()),
}
"""What is done, and the services that may restart for it."""


def under_load(deployment: Deployment, meanwhile: Callable[[Load], None], *options: str) -> dict[str, Any]:
    """What `deploy.trial.load` with these options writes, while something is done to its deployment."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.json"
        load = deployment.start_load(out, *options)
        try:
            meanwhile(load)
            load.wait(BATCH_S)
        finally:
            load.kill()
            load.wait()
        return dict(json.loads(out.read_text(encoding="utf-8")))


def run_batch(
    deployment: Deployment,
    name: str,
    fault: Callable[[Deployment], None] | None = None,
    hurt: tuple[str, ...] = (),
    expected: list[str] | None = None,
) -> tuple[Outcome, list[str]]:
    """One batch with a fault in its midst, which hurts some services; answers of a run without faults."""
    starts, crashes = deployment.starts(), deployment.crashes()

    def meanwhile(load: Load) -> None:
        if fault is not None:
            time.sleep(IN_FLIGHT_S)
            fault(deployment)

    result = under_load(deployment, meanwhile)
    answers = result["answers"]
    same = sum(a == b for a, b in zip(answers, expected or answers, strict=True) if a is not None)
    after = deployment.starts()
    restarted = [name for name in starts if after[name] != starts[name] and name not in hurt]
    crashed = [name for name, count in deployment.crashes().items() if count > crashes[name]]
    harmed = [f"{name} restarted" for name in restarted] + [f"{name} crashed" for name in crashed]
    outcome = Outcome(
        name,
        len(answers),
        answers.count(None),
        same,
        result["seconds"],
        tuple(result["errors"][:3]),
        tuple(harmed),
    )
    outcome.show()
    return outcome, answers


def rolling_restart(deployment: Deployment) -> Outcome:
    """All services restarted one after the other, under constant load by clients that never try again."""
    crashes = deployment.crashes()

    def meanwhile(load: Load) -> None:
        time.sleep(IN_FLIGHT_S)
        for service in RESTART_ORDER:
            deployment.restart(service)
        time.sleep(IN_FLIGHT_S)
        load.terminate()

    result = under_load(deployment, meanwhile, "--constant", GRPC, "--tokens", "24")
    answers = result["answers"]
    crashed = [name for name, count in deployment.crashes().items() if count > crashes[name]]
    asked = ", ".join(f"{kind} {count}" for kind, count in result["asked"].items())
    outcome = Outcome(
        f"rolling restart of all ({asked})",
        len(answers),
        answers.count(None),
        max((answers.count(answer) for answer in answers if answer is not None), default=0),
        result["seconds"],
        tuple(result["errors"][:3]),
        tuple(f"{name} crashed" for name in crashed),
    )
    outcome.show()
    return outcome


def trial(model: Path, folder: Path, base: Base) -> list[Outcome]:
    """Build, launch, hurt; what became of each batch."""
    with running_engine(folder) as engine:
        try:
            say("base images")
            make_base_images(engine, cache_dir() / "trial", base)
            say("wheels")
            fill_wheelhouse(base)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            # Debian's packages or Python's index cannot be reached: nothing that the deployment could help.
            raise EngineUnavailableError(f"what images are made of cannot be had here: {error}") from error
        say("images")
        build_images(engine, base)
        deployment = Deployment(engine, model)
        try:
            say("deployment")
            begin = time.monotonic()
            deployment.up()
            say(f"serving after {time.monotonic() - begin:.1f} s")
            say(f"Python in the containers: {deployment.python_version()}")
            first, expected = run_batch(deployment, "none")
            outcomes = [first]
            for name, (fault, hurt) in FAULTS.items():
                outcomes.append(run_batch(deployment, name, fault, hurt, expected)[0])
            outcomes.append(rolling_restart(deployment))
            if not all(item.well for item in outcomes):
                print(deployment.logs())
            return outcomes
        finally:
            deployment.down()


def say(text: str) -> None:
    """A line about progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser("python -m deploy.trial", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder that `tidepipe model pull` prints")
    parser.add_argument("--python", choices=list(BASES), default="oldest", help="in the containers")
    parser.add_argument("--json", type=Path, default=None, help="write the outcomes here")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidepipe-trial-"))
    try:
        check()
        outcomes = trial(options.model.resolve(), folder, BASES[options.python])
    except EngineUnavailableError as error:
        print(f"skipped: {error}")
        return 0
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        rows = [{name: getattr(item, name) for name in Outcome.__slots__} for item in outcomes]
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0 if all(item.well for item in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

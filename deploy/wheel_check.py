"""Builds the wheel and tries it where nothing else is: `make wheel-check`.

Two environments are made and removed. The first has what `pip install tidepipe` brings, by the hashes of
locks/client.txt: SDK and client commands work there, the others say what they lack. The second is a server:
the same wheel over the packages of the environment that runs this, which are those of the extra `server`. It
serves a real model, and the first asks it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIENT_LOCK = ROOT / "locks" / "client.txt"

MAX_CLIENT_MB = 60
"""Of the files; what a disk rounds each of them up to is its own affair, and said as well."""
MAX_IMPORT_S = 0.3
"""Of the processor, for `import tidepipe` and the first use of its client."""
COMMAND_S = 120.0
LACKS = "pip install 'tidepipe[server]'"

IMPORT_TIME = """
import time
began = time.process_time()
import tidepipe
tidepipe.connect, tidepipe.AsyncClient
print(time.process_time() - began)
"""

HELP = """
import contextlib, io, typer
from tidepipe.cli.main import app

def walk(command, path):
    yield command, path
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, [*path, name])

for command, path in walk(typer.main.get_command(app), ["tidepipe"]):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        command.main(["--help"], prog_name=" ".join(path), standalone_mode=False)
    assert "Usage" in shown.getvalue(), path
"""

QUICK_START = """
import asyncio, sys, tidepipe

endpoint = sys.argv[1]
question = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
with tidepipe.connect(endpoint) as client:
    answer = client.generate(**question)
    assert "Paris" in answer.text, answer
    with client.stream(**question) as stream:
        assert "".join(event.text for event in stream) == answer.text
    assert client.status().instances

async def main():
    async with await tidepipe.AsyncClient.connect(endpoint) as client:
        assert (await client.generate(**question)).text == answer.text

asyncio.run(main())
"""

BATCH_LINE = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/completions", '
    '"body": {"prompt": "One, two,", "max_tokens": 4, "logprobs": 1}}\n'
)

SERVER_COMMANDS = (
    "up --model m",
    "batch in.jsonl -o out.jsonl --model m",
    "bench throughput workload.json --model m",
    "bench serve --workload alpaca-like --endpoint 127.0.0.1:9",
    "model pull smollm2-135m",
    "profile --model m -o profile.csv",
    "predictor train answers.jsonl -o model",
    "predictor evaluate answers.jsonl --model model",
    "sim offline --model-shape llama-30b --hardware L20 --stages 4 --workload sharegpt-like --requests 20",
    "certs make certs",
)


class Environment:
    """A virtual environment, in which only what is installed there can be found."""

    def __init__(self, folder: Path, home: Path) -> None:
        """home: working directory, and home of caches, of what runs in it."""
        self.python = folder / "bin" / "python"
        self.command = folder / "bin" / "tidepipe"
        (self.packages,) = folder.glob("lib/python3*/site-packages")
        self._home = home
        # Nothing of the checkout, nor of the shell that runs this; what the model cache is stays as it was.
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def pip(self, *arguments: str) -> None:
        """Run the pip of the environment that runs this on the packages of this one."""
        command = (sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check")
        subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=600)

    def run(
        self, *command: str | Path, code: int = 0, limit_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; SystemExit with all output unless the exit code is `code`."""
        done = subprocess.run(
            command,
            cwd=self._home,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if done.returncode != code:
            shown = " ".join(map(str, command[1:]))
            sys.exit(f"exit code {done.returncode}, not {code}: {shown}\n{done.stdout}\n{done.stderr}")
        return done

    def tidepipe(self, line: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command with these arguments."""
        return self.run(self.command, *line.split(), code=code)

    @contextlib.contextmanager
    def up(self, *arguments: str) -> Iterator[dict[str, str]]:
        """A cluster; gives what its `ready` line says."""
        with subprocess.Popen(
            [self.command, "up", *arguments],
            cwd=self._home,
            env=self.variables,
            stdout=subprocess.PIPE,
            text=True,
        ) as cluster:
            try:
                assert cluster.stdout is not None
                line = cluster.stdout.readline()
                if not line.startswith("ready "):
                    sys.exit(f"the cluster did not start: {line!r}")
                yield dict(part.split("=", 1) for part in line.split()[1:])
            finally:
                cluster.terminate()
                code = cluster.wait(timeout=60)
        if code != 0:
            sys.exit(f"the cluster ended with {code}")


def empty(folder: Path, home: Path) -> Environment:
    """A new environment without anything, even pip."""
    venv.create(folder, with_pip=False, symlinks=True)
    return Environment(folder, home)


def build(into: Path) -> Path:
    """The wheel of this checkout."""
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run([*command, "--no-build-isolation", "-w", str(into), str(ROOT)], check=True, timeout=300)
    (wheel,) = into.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Every file of the packages is in it, at its place, and nothing else beside them in site-packages."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    target = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {
        str(Path(target["sources"].get(package, package)) / file.relative_to(ROOT / package))
        for package in target["only-include"]
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".so"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    if names != wanted:
        sys.exit(f"lacking in the wheel: {sorted(wanted - names)}; too much: {sorted(names - wanted)}")
    if tops := {name.split("/")[0] for name in names} - {"tidepipe", "tidepipe_common"}:
        sys.exit(f"the wheel would put into site-packages: {sorted(tops)}")


def check_client(client: Environment) -> None:
    """Small, quick, whole; and the commands for which it is not enough say so."""
    client.pip("check")
    files = [file.stat() for file in client.packages.rglob("*") if file.is_file()]
    size, blocks = (
        sum(of) / 1e6 for of in ((one.st_size for one in files), (512 * one.st_blocks for one in files))
    )
    seconds = min(float(client.run(client.python, "-c", IMPORT_TIME).stdout) for _ in range(3))
    taken = f"{size:.0f} MB in {len(files)} files installed, {blocks:.0f} MB of this disk's blocks"
    print(f"client: {taken}, {seconds:.2f} s of CPU to import the SDK", flush=True)
    if size > MAX_CLIENT_MB or seconds > MAX_IMPORT_S:
        sys.exit(f"it was to be {MAX_CLIENT_MB} MB and {MAX_IMPORT_S} s at most")
    client.run(client.python, "-c", "import router", code=1)
    client.run(client.python, "-c", HELP)
    client.tidepipe("--version")
    client.tidepipe("model list")
    client.tidepipe("keys add somebody --file keys.db")
    client.tidepipe("keys list --file keys.db")
    client.tidepipe("generate hello --endpoint 127.0.0.1:9", code=3)
    for line in SERVER_COMMANDS:
        said = client.tidepipe(line, code=2).stderr
        if LACKS not in said or "Traceback" in said:
            sys.exit(f"`tidepipe {line}` does not say what it lacks: {said}")
    said = client.run(client.python, "-m", "tidepipe.services", "router", "--help", code=2).stderr
    if LACKS not in said:
        sys.exit(f"a service does not say what it lacks: {said}")


def check_server(server: Environment, client: Environment, model: str) -> None:
    """Services come out of the wheel, and serve a real model to the client."""
    server.run(server.python, "-m", "tidepipe.services", "router", "--help")
    server.tidepipe(
        "sim offline --model-shape llama-30b --hardware L20 --stages 4 --workload sharegpt-like --requests 20"
    )
    began = time.monotonic()
    with server.up("--model", model) as address:
        print(f"server: `tidepipe up` from the wheel after {time.monotonic() - began:.0f} s", flush=True)
        endpoint = address["grpc"]
        client.run(client.python, "-c", QUICK_START, endpoint)
        client.tidepipe(f"generate hello --max-tokens 4 --endpoint {endpoint}")
        client.tidepipe(f"batch in.jsonl -o out.jsonl --endpoint {endpoint} --json")
        client.tidepipe(f"bench throughput workload.json --endpoint {endpoint}")
        server.tidepipe(
            f"bench serve --workload alpaca-like --requests 2 --max-total 64 --endpoint {endpoint}"
        )
        client.tidepipe(f"admin status --endpoint {endpoint} --json")
        client.tidepipe(f"admin trace -o trace.json --endpoint {endpoint}")
        with urllib.request.urlopen(f"http://{address['http']}/", timeout=10) as page:
            if b"<html" not in page.read():
                sys.exit("the live page is not in the wheel")


def main() -> None:
    """Build and try it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m", help="what the server serves")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory(prefix="tidepipe-wheel-") as folder:
        root = Path(folder)
        home = root / "home"
        home.mkdir()
        (home / "in.jsonl").write_text(BATCH_LINE, encoding="utf-8")
        (home / "workload.json").write_text('[{"prompt": [1, 2, 3], "out": 4}]', encoding="utf-8")
        (home / "answers.jsonl").write_text('{"prompt": "a", "output_tokens": 3}\n', encoding="utf-8")
        wheel = build(root / "dist")
        check_contents(wheel)
        client = empty(root / "client", home)
        client.pip("install", "--quiet", "--require-hashes", "-r", str(CLIENT_LOCK))
        client.pip("install", "--quiet", "--no-deps", str(wheel))
        check_client(client)
        server = empty(root / "server", home)
        server.pip("install", "--quiet", "--no-deps", str(wheel))
        # The packages that are installed here, but not the checkout: its .pth file is not read from there.
        (server.packages / "server.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        check_server(server, client, model)
    print("the wheel is whole", flush=True)


if __name__ == "__main__":
    main()

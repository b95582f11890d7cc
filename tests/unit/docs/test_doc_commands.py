"""Documentation that can be typed in: what its code says of commands, flags, targets and names exists."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import typer.main
import yaml

import tidepipe
from tidepipe.cli.main import app
from tidepipe_common.settings.command_line import make_parser, variable_of
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.definition import settings_of
from tidepipe_common.settings.predictor import PredictorSettings
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.settings.stage_worker import StageWorkerSettings
from tidepipe_common.settings.upstream import UpstreamSettings

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for folder in (".", "bench", "deploy", "docs", "examples")
    for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)$(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
INDENTED = re.compile(r"(?:^\n|\A)(?P<code>(?:^ {4}\S.*\n)+)", re.M)
INLINE = re.compile(r"`([^`]+)`")
SERVICES = {
    "router": RouterSettings,
    "controller": ControllerSettings,
    "controller.upstream": UpstreamSettings,
    "stage_worker": StageWorkerSettings,
    "predictor": PredictorSettings,
}
VARIABLE = re.compile(r"\bTIDEPIPE_[A-Z0-9_]+")
OTHERS = {
    *("--scheduler-cls", "--max-num-batched-tokens", "--pipeline-parallel-size", "--additional-config"),
    *("--scheduling-policy", "--cacert", "--strict", "--ulimit", "--help", "--version"),
}
"""Flags of other programs: vLLM's, curl's, mypy's, Docker's."""
BY_HAND = (
    "tidepipe.cli.reference",
    "launcher.reference",
    "launcher.keeper",
    "tidepipe.vllm",
    "stage_worker.transformers_code.survey",
)
"""Modules without a parser of argparse's."""


class Line(NamedTuple):
    """A command that a page shows. whole: nothing is left out, as in a block of code without `..`."""

    words: tuple[str, ...]
    whole: bool

    @property
    def flags(self) -> set[str]:
        return {word.partition("=")[0] for word in self.words if re.match(r"--?[a-z]", word)}


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each."""
    text = (ROOT / page).read_text()
    for match in FENCE.finditer(text):
        indent = len(match["indent"])
        yield match["language"], "\n".join(line[indent:] for line in match["code"].splitlines())
    for match in INDENTED.finditer(FENCE.sub("", text)):
        yield "", "\n".join(line[4:] for line in match["code"].splitlines())


def commands_of(text: str) -> Iterator[tuple[str, ...]]:
    """Each simple command of a line: substitutions and redirections are left out, what is optional is not."""
    text = re.sub(r"\$\([^()]*\)", "", text)
    text = re.sub(r"\[(-[^\]]*)\]", lambda match: match[1].replace("|", " "), text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in [*lexer, ";"]:
            if not set(word) <= set("|;&<>"):
                words.append(word)
                continue
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            yield tuple(words)
            words = [">"] if set(word) & set("<>") else []
    except ValueError:
        return  # a quotation that ends on another line


@cache
def lines(page: str) -> tuple[Line, ...]:
    found = []
    for language, text in blocks(page):
        if language in ("", "bash", "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                left_out = re.search(r"(?:^|\s)\.{2,3}(?:\s|$)", line.partition(" #")[0])
                found += [Line(words, not left_out) for words in commands_of(line)]
    prose = FENCE.sub("", (ROOT / page).read_text())
    for code in INLINE.findall(prose):
        if re.match(r"(?:\w+=\S+ )*(?:tidepipe|python|make|pytest) ", code):
            found += [Line(words, False) for words in commands_of(" ".join(code.replace("\\|", "|").split()))]
    return tuple(line for line in found if len(line.words) > 1)


def named(pattern: str) -> list[tuple[str, Line]]:
    """Page and line of each command that begins so."""
    return [
        (page, line)
        for page in PAGES
        for line in lines(page)
        if re.match(pattern, " ".join(line.words) + " ")
    ]


class WrongError(Exception):
    """What a parser says of a line."""


def _refuse(_parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise WrongError(message)


class CaughtError(Exception):
    """The parser that a module makes."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def _catch(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
    raise CaughtError(parser)


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """Of `python -m MODULE`: its main function runs until it would parse."""
    if module in SERVICES:
        return make_parser(SERVICES[module])
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    assert ".parse_args(" in inspect.getsource(found.main), f"{module} would run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", _catch)
        patch.setattr(sys, "argv", [module])
        try:
            running = found.main()
            if inspect.iscoroutine(running):
                running.send(None)
        except CaughtError as caught:
            return caught.parser
    raise AssertionError(f"{module} has no parser")


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= {flag for inner in action.choices.values() for flag in flags_of(inner)}
    return flags


def means_a_placeholder(error: object) -> bool:
    """`--rate R` and the like: a number in capitals."""
    return re.search(r"'[A-Z]+'", str(error)) is not None


def complaint(line: Line) -> str:
    """What is wrong with a line of `tidepipe`."""
    command: Any = typer.main.get_command(app)
    path, rest = ["tidepipe"], list(line.words[1:])
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-") or rest[0].isupper() or rest[0].startswith("."):
            break
        if rest[0] not in command.commands:
            return f"no command {rest[0]}"
        command, path = command.commands[rest[0]], [*path, rest.pop(0)]
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    if unknown := line.flags - known:
        return f"{' '.join(path)} has no {unknown}"
    if line.whole and "--help" not in rest:
        try:
            if unexpected := command.make_context(" ".join(path), rest).args:
                return f"unexpected {unexpected}"
        except typer.Exit:
            pass
        except Exception as error:  # whatever it says
            if not means_a_placeholder(error):
                return f"{type(error).__name__}: {error}"
    return ""


def test_tidepipe_takes_its_lines() -> None:
    wrong = [(page, " ".join(line.words), complaint(line)) for page, line in named("tidepipe ")]
    assert not [one for one in wrong if one[2]]


@pytest.mark.timeout(900)  # imports benchmarks, and PyTorch with them: eight seconds of a core
def test_modules_take_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argparse.ArgumentParser, "error", _refuse)
    wrong = []
    for page, line in named(r"python3? (-P )?-m [a-z]"):
        words = [word for word in line.words if word != "-P"]
        words = words[words.index("-m") + 1 :]
        if words[0] in ("tidepipe.services", "launcher.keeper"):
            del words[0]  # they pass on what follows
        module, rest = words[0], words[1:]
        if module in BY_HAND or module.partition(".")[0] in ("pip", "venv", "http"):
            continue
        parser = parser_of(module)
        if unknown := line.flags - {"-m", "-P"} - flags_of(parser):
            wrong.append((page, module, f"no {unknown}"))
        elif line.whole:
            try:
                parser.parse_args(rest)
            except WrongError as error:
                if not means_a_placeholder(error):
                    wrong.append((page, " ".join(words), str(error)))
    assert not wrong


def click_flags(command: Any) -> set[str]:
    names = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return names.union(*(click_flags(one) for one in getattr(command, "commands", {}).values()))


def modules() -> set[str]:
    """All that pages run by `python -m`."""
    found = {line.words[line.words.index("-m") + 1] for _, line in named(r"python3? (-P )?-m [a-z]")}
    return {name for name in found if name.partition(".")[0] in ("bench", "deploy", "launcher", *SERVICES)}


@pytest.mark.timeout(900)
def test_flags_in_prose_exist() -> None:
    known = click_flags(typer.main.get_command(app)) | OTHERS
    for name in (modules() | SERVICES.keys()) - set(BY_HAND):
        known |= flags_of(parser_of(name))
    wrong = {
        (page, flag)
        for page in PAGES
        for code in INLINE.findall(FENCE.sub("", (ROOT / page).read_text()))
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", code)
        if flag not in known
    }
    assert not wrong


def test_variables_exist() -> None:
    """Of the environment."""
    sources = [one for suffix in ("py", "sh", "yaml") for one in ROOT.glob(f"[!.]*/**/*.{suffix}")]
    known = {name for one in sources for name in VARIABLE.findall(one.read_text())}
    for model in SERVICES.values():
        known |= {variable_of(model, one) for one in settings_of(model).values()}
    # Names that code puts together, such as TIDEPIPE_VLLM_ and a setting, or a name and a number.
    begun = tuple(name for name in known if name.endswith("_") and name != "TIDEPIPE_")
    wrong = {
        (page, name)
        for page in PAGES
        for name in VARIABLE.findall((ROOT / page).read_text())
        if re.sub(r"_\d+$", "", name) not in known and not name.startswith(begun)
    }
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_clusters_have_the_ports_that_are_asked(page: str) -> None:
    """Where a page starts a cluster and calls it: a port that is not chosen is any free one."""
    code = "\n".join(text for language, text in blocks(page) if language in ("", "bash", "sh"))
    if not re.search(r"^tidepipe up ", code, re.M):
        return
    chosen = set(re.findall(r"--(?:grpc-port|http-port|port|listen|http)[ =](?:[\w.]+:)?(\d+)", code))
    here = r"(?:127\.0\.0\.1|localhost)"
    asked = re.findall(rf"--endpoint (?:[\w.]+):(\d+)|(?:curl|--url)[^\n]*? (?:https?://)?{here}:(\d+)", code)
    assert {port for ports in asked for port in ports if port} <= chosen


def test_programs_and_tests_exist() -> None:
    files = [
        (page, word.partition("::")[0])
        for page, line in named(r"(python3?|pytest) ")
        for word in line.words[1:]
        if re.fullmatch(r"[\w./-]+\.py(::\S+)?", word) or (line.words[0] == "pytest" and "/" in word)
    ]
    assert files
    assert not [(page, name) for page, name in files if not (ROOT / name).exists()]


def test_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    asked = {
        (page, word)
        for page, line in named("make ")
        for word in line.words[1:]
        if re.fullmatch("[a-z-]+", word)
    }
    assert asked
    assert not {(page, word) for page, word in asked if word not in targets}


@pytest.mark.parametrize("page", [page for page in PAGES if any(language for language, _ in blocks(page))])
def test_code_can_be_read(page: str) -> None:
    for language, text in blocks(page):
        match language:
            case "python":
                for node in ast.walk(ast.parse(text)):
                    if (
                        isinstance(node, ast.Attribute)
                        and isinstance(node.value, ast.Name)
                        and node.value.id == "tidepipe"
                    ):
                        assert hasattr(tidepipe, node.attr), node.attr
            case "json":
                json.loads(text)
            case "toml":
                tomllib.loads(text)
            case "yaml":
                yaml.safe_load(text)

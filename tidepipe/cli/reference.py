"""The reference of the command line: every command, argument and flag, as Markdown.

python -m tidepipe.cli.reference > docs/reference/cli.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main
from typer.core import TyperArgument, TyperGroup, TyperOption

from tidepipe.cli.main import app

_HEAD = """\
# Command line

Made by `python -m tidepipe.cli.reference`; a test holds that it is up to date. `tidepipe COMMAND --help` says
the same.

Exit codes: 0 all is well, 1 some requests failed, 2 a flag, file or model cannot be used, 3 the cluster
failed, 130 interrupted.
"""
_TABLE = "\n| | value | what |\n|---|---|---|\n"


def reference() -> str:
    """The whole page: commands, then the flags that several have in common."""
    panels: dict[str, str] = {}
    commands = "".join(_describe(typer.main.get_command(app), "tidepipe", panels))
    shared = "".join(f"\n## {name}\n{_TABLE}{rows}" for name, rows in panels.items())
    return _HEAD + commands + shared


def _describe(command: Any, path: str, panels: dict[str, str]) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from _describe(inner, f"{path} {name}", panels)
        return
    arguments = [_argument(one) for one in command.params if isinstance(one, TyperArgument)]
    yield f"\n## {' '.join([path, *arguments])}\n\n{_text(inspect.cleandoc(command.help or ''))}\n"
    rows: dict[str, str] = {}
    for one in command.params:
        if one.help and not one.hidden:
            panel = one.rich_help_panel or ""
            rows[panel] = rows.get(panel, "") + _row(one)
    if "" in rows:
        yield _TABLE + rows.pop("")
    shared = [name for name, lines in rows.items() if panels.setdefault(name, lines) == lines]
    if shared:
        links = ", ".join(f"[{name.lower()}](#{name.lower().replace(' ', '-')})" for name in shared)
        yield f"\nAnd the flags of: {links}.\n"
    for name in rows.keys() - set(shared):
        yield f"\n{name}:\n{_TABLE}{rows[name]}"


def _argument(one: TyperArgument) -> str:
    name = (one.metavar or str(one.name).upper()).strip("{}[]")
    return name if one.required else f"[{name}]"


def _row(one: TyperArgument | TyperOption) -> str:
    if isinstance(one, TyperArgument):
        return f"| {_text(_argument(one))} | | {_text(one.help or '')} |\n"
    names = ", ".join(f"`{name}`" for name in sorted([*one.opts, *one.secondary_opts], key=len))
    words = [_text(one.help or "")]
    if one.required:
        words.append("Required.")
    elif not one.is_flag and one.default not in (None, ""):
        words.append(f"Default: {one.default}.")
    value = "" if one.is_flag else _text(one.metavar or str(one.name).upper())
    return f"| {names} | {value}{_range(one.min, one.max)} | {' '.join(words)} |\n"


def _range(least: float | None, most: float | None) -> str:
    parts = [f"{word} {bound}" for word, bound in (("from", least), ("to", most)) if bound is not None]
    return f", {' '.join(parts)}" if parts else ""


def _text(words: str) -> str:
    """Words of a help in Markdown: nothing in them may end a table's cell or begin a tag."""
    return " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(reference(), end="")

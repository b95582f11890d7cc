"""What callers and shells hand over: refused in words that name it, before anything is sent or started."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tidepipe.batch.input_file import count_lines
from tidepipe.batch.places import check_places
from tidepipe.cli.admin.groups_view import print_groups
from tidepipe.cli.main import app, check_arguments, main
from tidepipe.client.admin import AdminClient
from tidepipe.client.requests import check_endpoint, make_request, make_sampling
from tidepipe_common.errors import ConfigError, InvalidRequestError, TidePipeError
from tidepipe_common.types.request import ChatTurn
from tidepipe_common.types.thought import TemplateOptions

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
DEEP: list[Any] = []
for _ in range(10_000):
    DEEP = [DEEP]
ANYTHING: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | ANY_TEXT
    | st.binary(max_size=3)
    | st.floats()
    | st.sampled_from([10**400, -(10**400), -0.0, 2**31, 2**32, 2**63, 2**64, -1, DEEP])
    | st.lists(st.integers() | ANY_TEXT | st.none(), max_size=3)
    | st.dictionaries(st.integers() | ANY_TEXT, st.floats() | ANY_TEXT, max_size=2)
)
PARAMETERS = [
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "max_tokens"),
    *(
        "min_tokens",
        "seed",
        "logit_bias",
        "stop",
        "stop_token_ids",
        "logprobs",
        "n",
        "structure",
        "ignore_eos",
    ),
]


@given(st.dictionaries(st.sampled_from(PARAMETERS), ANYTHING, max_size=3), ANYTHING, ANYTHING, ANYTHING)
def test_arguments_of_the_sdk_are_sent_or_refused(
    parameters: dict[str, Any], prompt: Any, model: Any, turn: Any
) -> None:
    for asked in (prompt, [turn], [{"role": "user", "content": turn}]):
        try:
            make_request(asked, make_sampling(None, parameters), model=model).SerializeToString()
        except InvalidRequestError as error:
            str(error).encode()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": [ChatTurn("user", "\udfff")]}, "content"),
        ({"prompt": [{"role": "\ud800", "content": ""}]}, "role"),
        ({"prompt": 5}, "the prompt"),
        ({"prompt": "x", "model": "m\udc80"}, "model"),
        ({"prompt": "x", "request_id": "\ud800"}, "request_id"),
        ({"prompt": "x", "user": "\ud800"}, "user"),
        ({"prompt": "x", "tools": ["\ud800"]}, "tools"),
        ({"prompt": "x", "tools": ["{}"]}, "tools goes with a conversation"),
        ({"prompt": [1], "template": TemplateOptions(effort="low")}, "reasoning_effort goes with"),
    ],
)
def test_what_is_no_text_is_named(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        make_request(sampling=make_sampling(None, {}), **arguments)
    with pytest.raises(InvalidRequestError, match=r"^stop "):
        make_sampling(None, {"stop": ["a", "\ud800"]})


@pytest.mark.parametrize("endpoint", ["", "host", "h:²", "h:99999", "h:" + "9" * 5000, "\ud800:1", "a\n:x"])
def test_an_endpoint_is_one(endpoint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_endpoint(endpoint)
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["generate", "caf\udce9"], "argument 2"), (["generate", "--stop", "\udcff\n"], "--stop")],
)
def test_an_argument_that_is_not_utf8_is_named(arguments: list[str], name: str) -> None:
    check_arguments(["generate", "café", "--stop", "\n"])
    with pytest.raises(InvalidRequestError, match=f"^{name} is not valid UTF-8"):
        check_arguments(arguments)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("out", folder, "is a folder"),
        (".", None, "is a folder"),
        ("..", None, "is a folder"),
        ("pipe", os.mkfifo, "no regular file"),
        ("protected", lambda path: path.touch(0o444), "write-protected"),
        ("/dev/stdout", None, "no regular file"),
        ("/dev/null", None, "no regular file"),
        ("in.jsonl", None, "is the input"),
        ("missing/out", None, "there is no folder"),
        ("x" * 250, None, "245 bytes are possible"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, name: str, make: Callable[[Path], None] | None, said: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    if make is not None:
        make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=said):
        check_places(source, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"{}", mtime=0), "gzip"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b" \n\n", "has no requests"),
    ],
)
def test_an_input_that_has_no_lines_is_refused_at_once(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(ConfigError, match=kind):
        count_lines(tmp_path / "in")


def test_places_of_a_batch(tmp_path: Path) -> None:
    source, pipe = tmp_path / "out.jsonl.progress", tmp_path / "pipe"
    source.write_text("{}\n")
    os.mkfifo(pipe)
    with pytest.raises(TidePipeError, match=r"progress, .* is the input"):
        check_places(source, tmp_path / "out.jsonl")
    with pytest.raises(TidePipeError, match="no regular file"):
        check_places(pipe, tmp_path / "other")
    check_places(source, tmp_path / "other")
    check_places(tmp_path / "nothing", tmp_path / "other")  # what reads it says so


def test_names_do_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "[red]i[/]\x1b[31m\n[bold]x"
    groups: dict[str, Any] = {
        **{"routing": bad, "pending": 0, "macro_min": 1, "macro_max": 2, "macros": []},
        "scaling": {
            **{"automatic": False, "provisioner": True, "starting": [], "stopping": [bad]},
            "notes": [{"age_s": 1.0, "text": bad}],
        },
    }
    print_groups(groups)
    shown = capsys.readouterr().out
    assert shown.replace("\n", " ").count("[red]i[/]\\x1b[31m\\n[bold]x") == 3 and "\x1b" not in shown


def test_a_path_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever command looks at it: also where the library's own error would come through."""
    options = ["--hardware", "L20", "--stages", "2", "--workload", "sharegpt-like"]
    monkeypatch.setattr("sys.argv", ["tidepipe", "sim", "offline", "--model-shape", "a" * 300, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot use aaa") and error.count("\n") == 1


@pytest.mark.parametrize("number", [-1, 2**32, 2**70])
async def test_numbers_that_no_message_holds_are_refused(number: int) -> None:
    async with AdminClient("127.0.0.1:9") as client:
        calls = (
            client.split("macro-1", number),
            client.scale("add", number),
            client.auto_scaling(True, 1, number),
        )
        for call in calls:
            with pytest.raises(InvalidRequestError):
                await call


_ROUTER = ("--endpoint", "127.0.0.1:9")
_ONLINE = (
    "--model-shape",
    "llama2-13b",
    "--hardware",
    "L20",
    "--instances",
    "1",
    "--workload",
    "alpaca-like",
)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("generate", "hi", *_ROUTER, "--no-chat", "--system", "x"), "--system"),
        (("bench", "serve", "--workload", "alpaca-like", *_ROUTER, "--bearer", "x"), "--bearer"),
        (("admin", "phases", *_ROUTER, "--interval", "1"), "--interval"),
        (("admin", "scale", "auto", "off", *_ROUTER, "--min", "1"), "--min"),
        (("sim", "online", *_ONLINE, "--ttft-ms", "1", "--tpot-ms", "1", "--rate", "1", "--scan"), "--scan"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(arguments: tuple[str, ...], flag: str) -> None:
    """Even with its default as the value: whoever types it in expects something of it."""
    run = CliRunner().invoke(app, list(arguments))
    assert isinstance(run.exception, ConfigError), run.output
    assert str(run.exception).startswith(f"{flag} ")

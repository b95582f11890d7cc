"""Numbers as a shell, a settings file or the SDK's caller may write them: used, or refused in a sentence."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st
from typer.models import ParameterInfo

from launcher.config import ClusterConfig, load_config
from tidepipe.cli import main
from tidepipe.client.session import GenerationSession
from tidepipe.client.wire import message_of
from tidepipe.v1 import admin_pb2, inference_pb2, timeline_pb2
from tidepipe_common.errors import ConfigError, InvalidRequestError
from tidepipe_common.numerals import count, decimal, host_and_port, whole_number

NO_NUMBERS = (
    "",
    " 10",
    "10 ",
    "1_0",
    "\u0661\u0660",
    "\u00b2",
    "\u00a010",
    "0x10",
    "nan",
    "inf",
    "1e",
    "--1",
)
HUGE = ("9" * 20, "-" + "9" * 20, "1" + "0" * 400, "9" * 5000)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_nobody_means_is_no_number(text: str) -> None:
    assert whole_number(text) is count(text, 99) is decimal(text) is None


def test_numbers_and_addresses_are_read() -> None:
    assert [whole_number(text) for text in ("10", "-7", "+7", "007")] == [10, -7, 7, 7]
    assert [count(text, 10) for text in ("10", "11", "+1", "-1", HUGE[-1])] == [10, None, None, None, None]
    assert [decimal(text) for text in ("10", "-.5", "1e2", "5.", "1e400")] == [10, -0.5, 100, 5, None]
    assert host_and_port("[::1]:80") == ("[::1]", 80) and host_and_port("a:0") == ("a", 0)
    assert [host_and_port(text) for text in ("a", ":1", "a:65536", "a:\u00b2", "a:-1")] == [None] * 5


def numbers(app: typer.Typer, *path: str) -> Iterator[tuple[tuple[str, ...], str, ParameterInfo, bool]]:
    """Every argument of every command that is a number: command, its name, and whether it is whole."""
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from numbers(group.typer_instance, *path, str(group.name))
    for command in app.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback, include_extras=True)
        for name in inspect.signature(command.callback).parameters:
            kind, *details = get_args(hints[name]) or (None,)
            if kinds := {int, float}.intersection((kind, *get_args(kind))):
                yield (*path, str(command.name)), name, details[0], int in kinds


NUMBERS = list(numbers(main.app))


def test_every_number_of_every_command_is_read_strictly() -> None:
    assert len(NUMBERS) > 80
    for command, name, detail, whole in NUMBERS:
        assert detail.parser is not None, (command, name)
        for text in (*NO_NUMBERS, *HUGE, *(("1.5",) if whole else ())):
            with pytest.raises(ValueError, match="must be a"):
                detail.parser(text)
        for limit in (detail.min, detail.max):
            if limit is not None:
                assert detail.parser(str(limit)) == limit


@pytest.mark.parametrize(
    "arguments",
    [
        ["admin", "scale", "set", "9" * 20, "--endpoint", "h:1"],
        ["admin", "scale", "auto", "on", "--max", "4294967296", "--endpoint", "h:1"],
        ["admin", "macro", "split", "m", "--count", "-1", "--endpoint", "h:1"],
        ["generate", "x", "--max-tokens", "2147483648", "--endpoint", "h:1"],
        ["generate", "x", "--seed", "18446744073709551616", "--endpoint", "h:1"],
        ["generate", "x", "--timeout", "nan", "--endpoint", "h:1"],
        ["up", "--model", "m", "--http-port", "1_0"],
        ["keys", "add", "x", "--file", "f", "--days", "1e300"],
        ["certs", "make", "d", "--days", "99999999"],
    ],
)
def test_the_command_line_says_so(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(sys, "argv", ["tidepipe", *arguments]), pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "must be a" in said and "got" in said and "Traceback" not in said


def test_a_model_without_its_flag_is_told_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """As whoever is used to `vllm serve MODEL` writes it."""
    with patch.object(sys, "argv", ["tidepipe", "up", "smollm2"]), pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "'smollm2'" in said and "--model" in said


@pytest.mark.parametrize(
    "name", [name for name, field in ClusterConfig.model_fields.items() if name != "model"]
)
def test_a_settings_file_says_nothing_that_services_cannot_hold(name: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    for value in (*HUGE[:2], HUGE[2], HUGE[3], "-1", "nan", "inf", "-inf", "1e300", "[" * 5000):
        file.write_text(f'model = "m"\n{name} = {value}\n')
        try:
            value = getattr(load_config(file, {}), name)
        except ConfigError as error:
            assert str(error).encode()
        else:
            assert name == "reserve" and value == -1, value


ANY: st.SearchStrategy[Any] = (
    st.integers() | st.floats() | st.text(st.characters(codec=None, exclude_categories=()), max_size=3)
)
ANY |= st.sampled_from([None, True, b"", [], 10**400, -(10**400), 2**32, -1, float("nan")])


@given(ANY)
@example("\ud800")
@example(99999999999999999999)
def test_messages_hold_what_callers_give_or_are_refused(value: Any) -> None:
    makes: list[Callable[[], Any]] = [
        lambda: message_of(admin_pb2.ScaleInstancesRequest, set=value, force=value),
        lambda: message_of(admin_pb2.SetAutoScalingRequest, on=True, least=value, most=value),
        lambda: message_of(admin_pb2.SplitMacroInstanceRequest, macro_id=value, count=value),
        lambda: message_of(inference_pb2.CancelRequest, request_ids=(value,)),
        lambda: message_of(timeline_pb2.GetTimelineRequest, seconds=value),
        lambda: GenerationSession(
            inference_pb2.InferenceRequest(),
            timeout_s=value,
            policy=None,  # type: ignore[arg-type]
        ),
    ]
    for make in makes:
        try:
            made = make()
        except InvalidRequestError as error:
            assert error.param and str(error).encode()
        else:
            if not isinstance(made, GenerationSession):
                made.SerializeToString()

"""What cannot be had on this machine is said before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher import devices, ports
from launcher.config import load_config
from launcher.preflight import check_settings
from tidepipe_common.errors import ConfigError, ModelError
from tidepipe_common.regular_files import check_writable


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"allow_host": "example.com:80"}, "--allow-host takes a name"),
        ({"allow_origin": "example.com"}, "--allow-origin takes SCHEME"),
        ({"journal": "/proc/x"}, "cannot write /proc/x"),
        ({"journal": "/proc/x.jsonl"}, "cannot write /proc/x.jsonl"),
        ({"data_dir": "/proc/x"}, "cannot write /proc/x"),
        ({"kv_offload": "1GiB:/nowhere"}, "/nowhere: there is no such folder"),
        ({"lora": "poet=/nowhere"}, "adapter poet: /nowhere: there is no such folder"),
        ({"memory_gib": 1e5, "stages": 2}, "100000 GiB for each of 2 stages is more than this machine has"),
        ({"executor": "emulated", "hardware": "L99"}, "unknown hardware 'L99'; known: a100"),
        ({"device": "cuda"}, "PyTorch sees no CUDA device here"),
    ],
)
def test_settings_that_cannot_work_here(
    flags: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: False)
    with pytest.raises((ConfigError, ModelError), match=message):
        check_settings(load_config(None, {"model": "m", **flags}))


def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert devices.device_fault("cuda:1") == ""
    assert "2 CUDA devices are here" in devices.device_fault("cuda:2")


def test_places_are_tried(tmp_path: Path) -> None:
    """Nothing is left behind, and what is there stays as it is."""
    there = tmp_path / "there"
    there.write_text("kept")
    check_writable(there)
    check_writable(tmp_path / "new" / "file")
    check_writable(tmp_path / "new", folder=True)
    check_writable(Path("/dev/null"))
    check_writable(None)
    assert [there.read_text(), *tmp_path.iterdir()] == ["kept", there]
    nowhere = Path("/proc/x")
    for place, folder in ((tmp_path, False), (there, True), (there / "below", False), (nowhere, False)):
        with pytest.raises(ConfigError, match=f"cannot write {place}"):
            check_writable(place, folder=folder)


def test_a_free_port_is_given_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there yet, so that looking alone would find it again: here, or in another process."""
    port = ports.choose_port("127.0.0.1", 0)
    monkeypatch.setattr(ports, "_CANDIDATES", range(port, port + 1))
    with pytest.raises(ConfigError, match="found no free port"):
        ports.choose_port("127.0.0.1", 0)
    assert ports.choose_port("127.0.0.1", port) == port
    with pytest.raises(ConfigError, match="--host must be an address of this machine"):
        ports.choose_port("192.0.2.1", 0)


def test_links_are_judged_by_what_they_name(tmp_path: Path) -> None:
    """Not by the folder that they are in."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new")
    check_writable(link)
    with pytest.raises(ConfigError, match="leads nowhere"):
        check_writable(link, folder=True)
    for name in ("/proc/x", tmp_path / "missing" / "file", link):
        link.unlink()
        link.symlink_to(name)
        for place in (link, link / "below"):
            with pytest.raises(ConfigError, match=f"cannot write {place}"):
                check_writable(place)

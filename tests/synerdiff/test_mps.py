"""Being a client of CUDA MPS, and what of the GPU that leaves: against a stand-in for the daemon."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synerdiff import mps
from synerdiff.mps import (
    DeviceShare,
    MpsClient,
    MpsRequired,
    device_ordinal,
    device_share,
    find_client,
    parse_memory_limits,
    parse_thread_percentage,
)
from tests.mps_daemon import FakeDaemon, fake_daemon
from tests.waiting import HANG_S

GIB = 2**30


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, a stand-in that answers is heard."""
    monkeypatch.setattr(mps, "_ASK_TIMEOUT_S", HANG_S)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path, percent="50.0", memory="3G") as running:
        yield running


def client(found: mps.Finding) -> MpsClient:
    assert found.client is not None
    return found.client


def test_without_a_daemon_there_is_no_client_and_no_complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "DEFAULT_PIPE_DIRECTORY", str(tmp_path / "none"))
    assert find_client(environ={}) == (None, ())
    assert device_share("cpu", 5 * GIB) == DeviceShare()


def test_a_daemon_is_found_where_cuda_looks_by_default(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "DEFAULT_PIPE_DIRECTORY", str(daemon.pipe_directory))
    found = find_client(environ={"PATH": "/nowhere"})
    assert client(found).pipe_source == "CUDA's default"
    assert client(found).thread_percent == 100
    assert "could not be asked" in client(found).thread_source
    assert found.warnings == ()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_socket_that_outlived_its_daemon_is_none(kind: socket.SocketKind, tmp_path: Path) -> None:
    control = socket.socket(socket.AF_UNIX, kind)
    control.bind(str(tmp_path / "control"))
    control.listen()
    environ = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30", "PATH": ""}
    assert client(find_client(environ=environ)).thread_percent == 30
    control.close()
    found = find_client(environ=environ)
    assert found.client is None
    assert f"CUDA_MPS_PIPE_DIRECTORY={tmp_path}: no control daemon answers" in found.warnings[0]
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=30 has no effect" in found.warnings[1]


def test_a_directory_without_a_socket_is_told(tmp_path: Path) -> None:
    found = find_client(environ={"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})
    assert found.client is None
    assert f"no control daemon's socket in {tmp_path}" in found.warnings[0]
    too_long = find_client(environ={"CUDA_MPS_PIPE_DIRECTORY": "/tmp/" + "x" * 200})
    assert too_long.client is None
    assert "too long" in too_long.warnings[0]


def test_the_daemons_defaults_hold_where_no_variable_is_set(daemon: FakeDaemon) -> None:
    found = find_client(environ=daemon.environ)
    assert found == (
        MpsClient(
            pipe_directory=str(daemon.pipe_directory),
            pipe_source="CUDA_MPS_PIPE_DIRECTORY",
            thread_percent=50,
            thread_source="the MPS daemon's default",
            memory_limit_bytes=3 * GIB,
            memory_source="the MPS daemon's default",
        ),
        (),
    )
    assert client(find_client(1, daemon.environ)).memory_limit_bytes == 0


def test_a_client_lowers_its_limits_and_cannot_raise_them(daemon: FakeDaemon) -> None:
    lower = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1G,1=512MB"}
    low = find_client(0, {**daemon.environ, **lower})
    assert (client(low).thread_percent, client(low).thread_source) == (30, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    assert (client(low).memory_limit_bytes, client(low).memory_source) == (GIB, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT")
    assert low.warnings == ()
    assert client(find_client(1, {**daemon.environ, **lower})).memory_limit_bytes == 512 * 2**20
    higher = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "70", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=10G"}
    high = find_client(0, {**daemon.environ, **higher})
    assert (client(high).thread_percent, client(high).memory_limit_bytes) == (50, 3 * GIB)
    assert "can only lower its share, so 50 holds" in high.warnings[0]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "0", "'0' is left out: it should be a number above 0 and at most 100"),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "101", "at most 100"),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "half", "'half'"),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "nan", "'nan'"),
        ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "10G", "'10G' is not DEVICE=LIMIT"),
        ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=10", "'10' is not a whole number above 0 with M or G"),
        ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=0G", "'0G'"),
        ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=1G,0=2G", "device 0 comes twice"),
        ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "", "is not DEVICE=LIMIT"),
    ],
)
def test_a_bad_value_is_named_and_the_daemons_limit_holds(
    variable: str, value: str, said: str, daemon: FakeDaemon
) -> None:
    found = find_client(environ={**daemon.environ, variable: value})
    (warning,) = found.warnings
    assert warning.startswith(f"{variable}={value!r}")
    assert said in warning
    assert (client(found).thread_percent, client(found).memory_limit_bytes) == (50, 3 * GIB)


def test_values_as_people_and_the_daemon_write_them() -> None:
    assert [parse_thread_percentage(text) for text in ("25.0", "100", " 0.4 ", "33.6")] == [25, 100, 1, 34]
    assert parse_memory_limits("0=10G, 1=10240M") == {0: 10 * GIB, 1: 10 * GIB}
    assert [device_ordinal(device) for device in ("cuda", "cuda:0", "cuda:3")] == [0, 0, 3]


@pytest.mark.parametrize("percent", ["", "Cannot find MPS control daemon process"])
def test_an_answer_that_says_nothing_is_no_limit(percent: str, tmp_path: Path) -> None:
    with fake_daemon(tmp_path, percent=percent) as running:
        assert client(find_client(environ=running.environ)).thread_percent == 100


def test_a_daemon_that_does_not_answer_costs_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "_ASK_TIMEOUT_S", 0.1)
    with fake_daemon(tmp_path, seconds=HANG_S) as running:
        began = time.monotonic()
        found = client(find_client(environ=running.environ))
    assert time.monotonic() - began < HANG_S
    assert "could not be asked" in found.thread_source


@pytest.mark.parametrize(
    ("setting", "limit_bytes"), [(0, 3 * GIB), (GIB, GIB), (3 * GIB, 3 * GIB), (10 * GIB, 3 * GIB)]
)
def test_a_workers_setting_wins_but_not_over_mps(
    setting: int, limit_bytes: int, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in daemon.environ.items():
        monkeypatch.setitem(os.environ, name, value)
    assert device_share("cuda:0", setting) == DeviceShare(50, limit_bytes)
    assert device_share("cpu", setting) == DeviceShare()


def test_without_mps_a_workers_setting_is_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "DEFAULT_PIPE_DIRECTORY", str(tmp_path))
    assert device_share("cuda", GIB) == DeviceShare(0, GIB)


def test_a_worker_that_requires_mps_refuses_to_go_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert device_share("cuda", 0) == DeviceShare(0, 0)
    with pytest.raises(MpsRequired) as caught:
        device_share("cuda", 0, require_mps=True)
    said = str(caught.value)
    assert all(words in said for words in ("require_mps", str(tmp_path), "nvidia-cuda-mps-control -d"))
    assert "\n" not in said


def test_with_a_daemon_what_requires_mps_has_it(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in daemon.environ.items():
        monkeypatch.setitem(os.environ, name, value)
    assert device_share("cuda", 0, require_mps=True) == DeviceShare(50, 3 * GIB)

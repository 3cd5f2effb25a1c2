"""The kit's own MPS daemon, with a stand-in for NVIDIA's program: a script that keeps a socket file while it "runs"."""

import os
from pathlib import Path
from shutil import which

import pytest

from bench.gpu import mps
from bench.gpu.mps import MpsUnavailable, control_program, daemon
from synerdiff.mps import CONTROL_PROGRAM

_PROGRAM = """#!/bin/sh
echo "$CUDA_MPS_PIPE_DIRECTORY $*" >> "$CALLS"
if [ "$1" = -d ]; then
    [ -z "$REFUSES" ] || { echo "cannot start here"; exit 1; }
    sleep 60 &  # as the daemon: it holds what it was given as its output
    echo $! > "$CUDA_MPS_PIPE_DIRECTORY/daemon"
    touch "$CUDA_MPS_PIPE_DIRECTORY/control"
else
    read word; echo "said $word" >> "$CALLS"
    kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY/daemon")"
fi
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / CONTROL_PROGRAM
    program.parent.mkdir()
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    monkeypatch.setattr(mps, "_BESIDE_THE_DRIVER", (str(program.parent),))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("REFUSES", "")
    return tmp_path / "calls"


def test_a_daemon_has_a_folder_of_its_own_and_ends_with_its_block(calls: Path) -> None:
    before = dict(os.environ)
    assert which(CONTROL_PROGRAM) is None, "it is beside the driver alone"
    with daemon():
        folder = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        assert folder.is_dir()
        assert which(CONTROL_PROGRAM) == control_program(), "workers ask it through the PATH"
        process = Path("/proc", (folder / "daemon").read_text().strip())
        assert process.exists()
    assert dict(os.environ) == before
    assert not folder.exists()
    assert calls.read_text().splitlines() == [f"{folder} -d", f"{folder} ", "said quit"]


def test_one_that_does_not_start_says_why(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSES", "yes")
    with pytest.raises(MpsUnavailable, match="cannot start here"), daemon():
        pytest.fail("begun without a daemon")
    assert "quit" not in calls.read_text()


def test_without_the_program_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mps, "_BESIDE_THE_DRIVER", (str(tmp_path),))
    with pytest.raises(MpsUnavailable, match=r"no nvidia-cuda-mps-control on the PATH"), daemon():
        pytest.fail("begun without a program")

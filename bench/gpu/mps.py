"""A CUDA MPS daemon of the kit's own, in a folder of its own. It touches no setting of the card and no other daemon."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from bench.gpu.kit import Kit
from synerdiff.mps import CONTROL_PROGRAM, PIPE_DIRECTORY

# Where NVIDIA's container runtime, or a mount of the driver, may have put its programs.
_BESIDE_THE_DRIVER = ("/usr/local/nvidia/bin", "/usr/bin", "/usr/lib/nvidia/bin", "/opt/nvidia/bin")
_LOG_DIRECTORY = "CUDA_MPS_LOG_DIRECTORY"
_START_S, _SOCKET_S, _STOP_S, _CLIENT_S = 20.0, 3.0, 8.0, 60.0
_CLIENT = (
    "import torch; print(float((torch.ones(1024, 1024, device='cuda') @ torch.ones(1024, 1024, device='cuda'))[0, 0]))"
)
_WORKS = "mps-works"


class MpsUnavailable(Exception):
    """There is no daemon to be had; the message says why."""


def control_program() -> str | None:
    """The daemon's program: on the PATH, or beside the driver."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *_BESIDE_THE_DRIVER))
    return shutil.which(CONTROL_PROGRAM, path=path)


@contextlib.contextmanager
def daemon() -> Iterator[None]:
    """Processes started inside the block are clients of a daemon of their own. Raises MpsUnavailable."""
    program = control_program()
    if program is None:
        raise MpsUnavailable(f"no {CONTROL_PROGRAM} on the PATH or in {', '.join(_BESIDE_THE_DRIVER)}")
    with tempfile.TemporaryDirectory(prefix="synerdiff-mps-", ignore_cleanup_errors=True) as folder:
        pipes, logs = Path(folder, "pipes"), Path(folder, "logs")
        for each in (pipes, logs):
            each.mkdir()
        path = os.pathsep.join((str(Path(program).parent), os.environ.get("PATH", "")))
        variables = {PIPE_DIRECTORY: str(pipes), _LOG_DIRECTORY: str(logs), "PATH": path}
        with patch.dict(os.environ, variables):
            _start(program, logs / "start.log")
            _await(pipes / "control")
            try:
                yield
            finally:
                _stop(program)


def probe(kit: Kit) -> str:
    """Start a daemon and a client of it. Returns "works", or why it does not; the other sections use that result."""
    try:
        with daemon():
            done = subprocess.run(
                [sys.executable, "-c", _CLIENT], capture_output=True, text=True, timeout=min(_CLIENT_S, kit.left_s)
            )
    except (MpsUnavailable, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return f"a client of it failed: {done.stderr.strip()[-300:]}"
    (kit.work / _WORKS).touch()
    return "works"


def works(kit: Kit) -> bool:
    """The result of `probe` in this run."""
    return (kit.work / _WORKS).exists()


def _start(program: str, log: Path) -> None:
    """Its output goes to a file: the daemon would hold a pipe open."""
    try:
        with log.open("wb") as said:
            started = subprocess.run([program, "-d"], stdout=said, stderr=said, timeout=_START_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpsUnavailable(f"{program} -d: {error}") from error
    if started.returncode:
        words = log.read_text(errors="replace").strip()[-300:]
        raise MpsUnavailable(f"{program} -d ended with {started.returncode}: {words}")


def _await(control: Path) -> None:
    """Until clients find the daemon; one that never opens its socket serves none, as the workers will say."""
    give_up_at = time.monotonic() + _SOCKET_S
    while not control.exists() and time.monotonic() < give_up_at:
        time.sleep(0.02)


def _stop(program: str) -> None:
    """It waits for its clients; those that stay too long are ended with it, since the next section starts its own."""
    for word in ("quit", "quit -f"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([program], input=f"{word}\n", text=True, capture_output=True, timeout=_STOP_S)
            return

"""A stand-in for NVIDIA's MPS daemon and program: a held socket and canned answers. Nothing of MPS is in it."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FakeDaemon:
    """Where it is, and variables for a process that is to find it."""

    pipe_directory: Path
    environ: Mapping[str, str]


@contextmanager
def fake_daemon(
    folder: Path, percent: str | None = "100.0", memory: str = "", seconds: float = 0
) -> Iterator[FakeDaemon]:
    """`percent` and `memory` are what the program prints; no `percent`: there is no program. It takes `seconds`."""
    pipes, programs = folder / "pipes", folder / "programs"
    pipes.mkdir()
    programs.mkdir()
    if percent is not None:
        program = programs / "nvidia-cuda-mps-control"
        program.write_text(
            "#!/bin/sh\n"
            f'[ -S "$CUDA_MPS_PIPE_DIRECTORY/control" ] || exit 1\n/bin/sleep {seconds}\nread -r command device\n'
            'case "$command" in\n'
            f'  get_default_active_thread_percentage) echo "{percent}" ;;\n'
            f'  get_default_device_pinned_mem_limit) [ "$device" = 0 ] && echo "{memory}" ;;\n'
            "esac\n"
        )
        program.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(str(pipes / "control"))
        control.listen()
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        yield FakeDaemon(pipes, {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "PATH": path})

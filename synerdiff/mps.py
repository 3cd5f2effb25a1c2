"""Whether this process shares its GPU through CUDA MPS, and its share of the GPU then. No CUDA call is made.

The CUDA driver makes a process a client of MPS by itself: when it finds a control daemon at CUDA_MPS_PIPE_DIRECTORY, or
at /tmp/nvidia-mps where that is not set. So this looks where the driver looks. Limits come from the process's own
variables and from the daemon's defaults; the lower one holds; the daemon is asked through NVIDIA's
`nvidia-cuda-mps-control` where that is on the PATH (the container runtime puts it there). Limits set for one running
MPS server alone are not seen. Never run against a real MPS daemon so far: see docs/mps.md.
"""

import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from synerdiff.errors import SynerDiffError
from synerdiff.telemetry import get_logger

PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
THREAD_PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
MEMORY_LIMIT = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
CONTROL_PROGRAM = "nvidia-cuda-mps-control"
DEFAULT_PIPE_DIRECTORY = "/tmp/nvidia-mps"

_ASK_TIMEOUT_S = 1.0
_BYTES = {"M": 2**20, "G": 2**30}
_SIZE = re.compile(r"(\d{1,9})([MG])B?", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")

log = get_logger("mps")


@dataclass(frozen=True)
class Limit:
    """A limit (percent of the GPU's threads, or bytes) and who set it."""

    value: int
    source: str


@dataclass(frozen=True)
class MpsClient:
    """Limits of an MPS client: 1 to 100 percent of threads, memory bytes (0: all); `*_source`: the source of each."""

    pipe_directory: str
    pipe_source: str
    thread_percent: int
    thread_source: str
    memory_limit_bytes: int
    memory_source: str


class MpsRequired(SynerDiffError):
    """The settings require CUDA MPS, and the worker is no client of it."""


class Finding(NamedTuple):
    """`client`: None where this process is no client of MPS. `warnings`: sentences that name variable, value, bound."""

    client: MpsClient | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeviceShare:
    """A worker's share of its device, as in its record; zeros: everything, or no GPU."""

    mps_thread_percent: int = 0
    memory_limit_bytes: int = 0


def device_share(device: str, memory_limit_bytes: int, require_mps: bool = False) -> DeviceShare:
    """The share of a worker on `device` (cpu, cuda or cuda:N), which is logged. Takes 2 s at most, on a CPU none.

    `memory_limit_bytes` is the worker's own setting (0: none); it overrides the limit of MPS, but never exceeds it.
    Raises MpsRequired where `require_mps` and this process, on a GPU, is no client of MPS.
    """
    if not device.startswith("cuda"):
        return DeviceShare()
    finding = find_client(device_ordinal(device))
    for warning in finding.warnings:
        log.warning("CUDA MPS", problem=warning)
    client = finding.client
    if client is None and require_mps:
        raise MpsRequired(
            f"require_mps: no MPS control daemon at {_pipe_directory(os.environ)[0]}; start one for this user with "
            f"`{CONTROL_PROGRAM} -d`, point {PIPE_DIRECTORY} at it, or set SYNERDIFF_REQUIRE_MPS=false"
        )
    if client is None:
        log.info("not a client of CUDA MPS")
        return DeviceShare(0, memory_limit_bytes)
    log.info("client of CUDA MPS", **vars(client))
    if client.memory_limit_bytes and memory_limit_bytes > client.memory_limit_bytes:
        log.warning(
            "CUDA MPS",
            problem=f"SYNERDIFF_MEMORY_LIMIT_BYTES={memory_limit_bytes} is above what MPS allows: "
            f"{client.memory_limit_bytes} ({client.memory_source}) hold",
        )
    limits = [limit for limit in (memory_limit_bytes, client.memory_limit_bytes) if limit]
    return DeviceShare(client.thread_percent, min(limits, default=0))


def device_ordinal(device: str) -> int:
    """The N of cuda:N; 0 for plain cuda."""
    return int(device.partition(":")[2] or 0)


def find_client(ordinal: int = 0, environ: Mapping[str, str] = os.environ) -> Finding:
    """The MPS client that a process with these variables is on the CUDA device `ordinal`, and warnings."""
    directory, named = _pipe_directory(environ)
    trouble = _control_trouble(Path(directory, "control"))
    if trouble is not None:
        return Finding(None, _without_daemon(directory, trouble, named, environ))
    warnings: list[str] = []
    threads = _thread_limit(environ, directory, warnings)
    memory = _memory_limit(environ, directory, ordinal, warnings)
    client = MpsClient(
        pipe_directory=directory,
        pipe_source=PIPE_DIRECTORY if named else "CUDA's default",
        thread_percent=threads.value,
        thread_source=threads.source,
        memory_limit_bytes=memory.value,
        memory_source=memory.source,
    )
    return Finding(client, tuple(warnings))


def parse_thread_percentage(text: str) -> int:
    """The percentage of a variable or an answer ("25.0"), at least 1. Raises ValueError naming the valid form."""
    if not _NUMBER.fullmatch(text.strip()) or not 0 < float(text) <= 100:
        raise ValueError("a number above 0 and at most 100")
    return max(1, round(float(text)))


def parse_memory_limits(text: str) -> dict[int, int]:
    """Bytes by device ordinal, of "0=10G,1=10240M" (powers of 1024). Raises ValueError naming the fault."""
    limits: dict[int, int] = {}
    for entry in text.split(","):
        ordinal, equals, size = entry.strip().partition("=")
        if not equals or not (ordinal.isascii() and ordinal.isdigit()):
            raise ValueError(f"{entry.strip()!r} is not DEVICE=LIMIT with a device's number, as 0=10G")
        if int(ordinal) in limits:
            raise ValueError(f"device {int(ordinal)} comes twice")
        limits[int(ordinal)] = _parse_size(size)
    return limits


def _parse_size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if not match or not int(match[1]):
        raise ValueError(f"{text!r} is not a whole number above 0 with M or G, as 10G or 10240M")
    return int(match[1]) * _BYTES[match[2].upper()]


def _pipe_directory(environ: Mapping[str, str]) -> tuple[str, bool]:
    """Where the driver looks for a daemon, and whether a variable says so."""
    named = environ.get(PIPE_DIRECTORY, "")
    return named or DEFAULT_PIPE_DIRECTORY, bool(named)


def _control_trouble(control: Path) -> str | None:
    """Why no daemon can be reached at this socket, or None where one can; "" where there is no socket at all.

    A datagram socket cannot connect to the daemon's, and the error shows whether a process holds that. So no
    connection opens, and the daemon logs nothing. The socket alone proves nothing: it outlives its daemon.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(control))
        except FileNotFoundError:
            return ""
        except PermissionError:
            return f"user {os.geteuid()} may not use {control}"
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                return None
            return f"no control daemon answers at {control} ({error.strerror or error})"
    return None


def _without_daemon(directory: str, trouble: str, named: bool, environ: Mapping[str, str]) -> tuple[str, ...]:
    if not trouble and named:
        trouble = f"there is no control daemon's socket in {directory}"
    where = f"{PIPE_DIRECTORY}={directory}" if named else f"{directory} (CUDA's default)"
    warnings = [f"{where}: {trouble}; taken to be without MPS"] if trouble else []
    for variable in (THREAD_PERCENTAGE, MEMORY_LIMIT):
        if variable in environ:
            warnings.append(f"{variable}={environ[variable]} has no effect: there is no MPS here")
    return tuple(warnings)


def _thread_limit(environ: Mapping[str, str], directory: str, warnings: list[str]) -> Limit:
    limits = []
    if (text := environ.get(THREAD_PERCENTAGE)) is not None:
        try:
            limits.append(Limit(parse_thread_percentage(text), THREAD_PERCENTAGE))
        except ValueError as error:
            warnings.append(f"{THREAD_PERCENTAGE}={text!r} is left out: it should be {error}")
    answer = _ask("get_default_active_thread_percentage", directory, environ)
    if answer is not None:
        try:
            limits.append(Limit(parse_thread_percentage(answer), "the MPS daemon's default"))
        except ValueError as error:
            warnings.append(f"the MPS daemon's default percentage is {answer!r}, not {error}: left out")
    if not limits:
        return Limit(100, "assumed: no variable sets it, and the MPS daemon could not be asked")
    lowest = min(limits, key=lambda limit: limit.value)
    if lowest is not limits[0]:
        own = limits[0]
        warnings.append(
            f"{THREAD_PERCENTAGE}={own.value} is above the MPS daemon's {lowest.value}: "
            f"a client can only lower its share, so {lowest.value} holds"
        )
    return lowest


def _memory_limit(environ: Mapping[str, str], directory: str, ordinal: int, warnings: list[str]) -> Limit:
    limits = []
    if (text := environ.get(MEMORY_LIMIT)) is not None:
        try:
            by_device = parse_memory_limits(text)
        except ValueError as error:
            warnings.append(f"{MEMORY_LIMIT}={text!r} is left out: {error}")
        else:
            limits += [Limit(by_device[ordinal], MEMORY_LIMIT)] if ordinal in by_device else []
    answer = _ask(f"get_default_device_pinned_mem_limit {ordinal}", directory, environ)
    if answer is not None and _SIZE.fullmatch(answer) and not answer.startswith("0"):
        limits.append(Limit(_parse_size(answer), "the MPS daemon's default"))
    if not limits:
        return Limit(0, "none found" if answer is not None else "none found; the MPS daemon could not be asked")
    return min(limits, key=lambda limit: limit.value)


def _ask(command: str, directory: str, environ: Mapping[str, str]) -> str | None:
    """The last line of the daemon's answer, or None where it cannot be asked or says nothing."""
    program = shutil.which(CONTROL_PROGRAM, path=environ.get("PATH"))
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program],
            input=f"{command}\n",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_TIMEOUT_S,
            env={**environ, PIPE_DIRECTORY: directory},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split("\n") if done.returncode == 0 else []
    return next((line.strip() for line in reversed(lines) if line.strip()), None)

"""Probes of a container, as a kubelet makes them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum

from deploy.rehearsal.manifests import Probe
from synerdiff.rpc import open_channel, serving

# Runs a command in the container; whether it ended with exit status 0 in time.
Execute = Callable[[tuple[str, ...], float], Awaitable[bool]]


class Verdict(Enum):
    """What a probe's answers add up to by its thresholds; UNKNOWN until there are enough."""

    UNKNOWN = "unknown"
    PASSED = "passed"
    FAILED = "failed"


class Tally:
    """Counts the answers of one probe in a row."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._last: bool | None = None
        self._in_a_row = 0

    def count(self, answer: bool) -> Verdict:
        """What holds after another answer; UNKNOWN while neither threshold is reached."""
        self._in_a_row = self._in_a_row + 1 if answer == self._last else 1
        self._last = answer
        threshold = self._probe.success_threshold if answer else self._probe.failure_threshold
        if self._in_a_row < threshold:
            return Verdict.UNKNOWN
        return Verdict.PASSED if answer else Verdict.FAILED


async def ask(probe: Probe, ip: str, execute: Execute) -> bool:
    """One answer, False where none comes in time."""
    if probe.kind == "exec":
        return await execute(probe.command, probe.timeout_s)
    if probe.kind == "grpc":
        # A channel of its own for each question: one that failed would wait before it connects again.
        async with open_channel(f"{ip}:{probe.port}") as channel:
            return await serving(channel, probe.service, probe.timeout_s)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(probe.timeout_s):
            reader, writer = await asyncio.open_connection(ip, probe.port)
            with contextlib.closing(writer):
                return probe.kind == "tcpSocket" or await _get(probe.path, ip, reader, writer)
    return False


async def _get(path: str, ip: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether a GET is answered as a kubelet likes it: 200 to 399."""
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {ip}\r\nconnection: close\r\n\r\n".encode())
    version, _, rest = (await reader.readline()).partition(b" ")
    return version.startswith(b"HTTP/") and rest[:1] in (b"2", b"3")

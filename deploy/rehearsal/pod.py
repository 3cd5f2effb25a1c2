"""One pod's life, as a kubelet leads it: containers, probes, restarts, and an end with a grace."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import Enum
from pathlib import Path

from deploy.rehearsal.manifests import Container, PodTemplate, Probe
from deploy.rehearsal.node import Identity
from synerdiff.rpc import open_channel, serving

# A container that ends is started again at once, then after these delays; one that lived this long begins anew.
_FIRST_DELAY_S, _LONGEST_DELAY_S, _LIVED_WELL_S = 10.0, 300.0, 600.0
# How long a node goes on sending new connections to a pod that has just left its Services: updates take time.
ENDPOINT_DELAY_S = 1.0
# The time that a container gets after SIGTERM where preStop has used up the whole grace.
_LEAST_GRACE_S = 2.0

# How a node starts a container, or another command in its stead: see `Node`.
Start = Callable[[Identity, Container, Path, Sequence[str]], Awaitable[asyncio.subprocess.Process]]


class Verdict(Enum):
    """The verdict of a probe's answers by its thresholds; UNKNOWN until there are enough."""

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
        """The verdict after another answer; UNKNOWN while neither threshold is reached."""
        self._in_a_row = self._in_a_row + 1 if answer == self._last else 1
        self._last = answer
        threshold = self._probe.success_threshold if answer else self._probe.failure_threshold
        if self._in_a_row < threshold:
            return Verdict.UNKNOWN
        return Verdict.PASSED if answer else Verdict.FAILED


async def _ask(probe: Probe, ip: str) -> bool:
    """One answer by the network, False where none comes in time."""
    if probe.kind == "grpc":
        # A new channel for each probe: one that failed would wait before it connects again.
        async with open_channel(f"{ip}:{probe.port}") as channel:
            return await serving(channel, probe.service, probe.timeout_s)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(probe.timeout_s):
            reader, writer = await asyncio.open_connection(ip, probe.port)
            with contextlib.closing(writer):
                return probe.kind == "tcpSocket" or await _get(probe.path, ip, reader, writer)
    return False


async def _get(path: str, ip: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether a GET is answered with success for a kubelet: 200 to 399."""
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {ip}\r\nconnection: close\r\n\r\n".encode())
    version, _, rest = (await reader.readline()).partition(b" ")
    return version.startswith(b"HTTP/") and rest[:1] in (b"2", b"3")


class ContainerLife:
    """One container of a pod, restarted until the pod is stopped."""

    def __init__(self, pod: "Pod", spec: Container, log: Path) -> None:
        self.spec = spec
        self._log = log
        self.restarts = 0
        self.ready = False
        self._pod = pod
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def keep(self) -> None:
        """Run it, and again when it ends, until `stop`."""
        delay_s = 0.0
        while not self._stopping:
            began = time.monotonic()
            status = await self._live()
            if self._stopping:
                return
            if time.monotonic() - began > _LIVED_WELL_S:
                delay_s = 0.0
            self._pod.tell(f"container {self.spec.name} ended with status {status}; again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(max(2 * delay_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
            self.restarts += 1

    async def stop(self, grace_s: float) -> None:
        """Have it end: preStop, SIGTERM, and SIGKILL when the grace is over."""
        self._stopping = True
        if not self.alive:
            return
        give_up_at = time.monotonic() + grace_s
        if self.spec.pre_stop_s:
            await self._ended_within(min(self.spec.pre_stop_s, grace_s))
        self.signal(signal.SIGTERM)
        if not await self._ended_within(max(give_up_at - time.monotonic(), _LEAST_GRACE_S)):
            self._pod.killed_after_grace += 1
            self._pod.tell(f"container {self.spec.name} did not end within {grace_s:g} s: SIGKILL")
            self.signal(signal.SIGKILL)
            await self._ended_within(None)

    async def kill(self) -> None:
        """SIGKILL, for good."""
        self._stopping = True
        if self.alive:
            self.signal(signal.SIGKILL)
            await self._ended_within(None)

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal; one that has ended gets none."""
        if self._process is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _live(self) -> int:
        """Run its process once. Returns the exit status."""
        self._process = await self._pod.node_start(self._pod.identity, self.spec, self._log, ())
        if self._stopping:
            self.signal(signal.SIGKILL)
        probing = asyncio.create_task(self._probe())
        try:
            return await self._process.wait()
        finally:
            probing.cancel()
            self._set_ready(False)

    async def _ended_within(self, seconds: float | None) -> bool:
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)
        return not self.alive

    async def _probe(self) -> None:
        """The startup probe to its success, then readiness and liveness beside each other."""
        spec = self.spec
        if spec.startup:
            async for verdict in self._verdicts(spec.startup):
                if verdict is Verdict.PASSED:
                    break
                if verdict is Verdict.FAILED:
                    await self._unfit("startup")
        self._pod.tell(f"container {spec.name} has started")
        if not spec.readiness:
            self._set_ready(True)
        async with asyncio.TaskGroup() as probes:
            for probe, follow in ((spec.readiness, self._follow_readiness), (spec.liveness, self._follow_liveness)):
                if probe:
                    probes.create_task(follow(probe))

    async def _follow_readiness(self, probe: Probe) -> None:
        async for verdict in self._verdicts(probe):
            if verdict is not Verdict.UNKNOWN:
                self._set_ready(verdict is Verdict.PASSED)

    async def _follow_liveness(self, probe: Probe) -> None:
        async for verdict in self._verdicts(probe):
            if verdict is Verdict.FAILED:
                await self._unfit("liveness")

    async def _verdicts(self, probe: Probe) -> AsyncIterator[Verdict]:
        tally = Tally(probe)
        await asyncio.sleep(probe.initial_delay_s)
        while not self._stopping:
            began = time.monotonic()
            yield tally.count(await (self._execute(probe) if probe.kind == "exec" else _ask(probe, self._pod.ip)))
            await asyncio.sleep(max(0.0, began + probe.period_s - time.monotonic()))

    async def _unfit(self, probe: str) -> None:
        """End a container that failed a probe, with its pod's grace; `keep` starts it again."""
        self._pod.unfit += 1
        self._pod.tell(f"container {self.spec.name} failed its {probe} probe")
        self.signal(signal.SIGTERM)
        if not await self._ended_within(self._pod.template.grace_s):
            self.signal(signal.SIGKILL)

    async def _execute(self, probe: Probe) -> bool:
        """Run its command beside the container: same image, volumes, user and network, process ids of its own."""
        process = await self._pod.node_start(self._pod.identity, self.spec, self._log, probe.command)
        try:
            return await asyncio.wait_for(process.wait(), probe.timeout_s) == 0
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._pod.readiness_changed()


class Pod:
    """A pod from its creation to its end. `on_change` is called when it becomes ready, unready, or is being stopped."""

    def __init__(
        self,
        identity: Identity,
        workload: str,
        template: PodTemplate,
        start: Start,
        logs: Path,
        *,
        on_change: Callable[[], None],
        on_event: Callable[[str], None],
    ) -> None:
        self.identity, self.name, self.ip = identity, identity.name, identity.ip
        self.workload = workload
        self.template, self.revision = template, template.revision
        self.node_start = start
        self.created_at = time.monotonic()
        self.ready_at: float | None = None
        self.terminating = False
        self.killed_after_grace = 0
        self.unfit = 0
        self.containers = [
            ContainerLife(self, spec, logs / f"{identity.name}-{spec.name}.log") for spec in template.containers
        ]
        self._left_at = -ENDPOINT_DELAY_S
        self._on_change = on_change
        self._on_event = on_event
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether it takes part in its Services."""
        return self.ready_at is not None and not self.terminating

    @property
    def in_service(self) -> bool:
        """Whether its Services send new connections to it: while it is ready, and a little longer."""
        return self.ready or time.monotonic() < self._left_at + ENDPOINT_DELAY_S

    def start(self) -> None:
        """Run its containers."""
        self._keepers = [asyncio.create_task(container.keep()) for container in self.containers]

    def kill9(self) -> None:
        """Kill its containers as a crash would; they are started again."""
        self.tell("kill -9")
        for container in self.containers:
            container.signal(signal.SIGKILL)

    def leave(self) -> None:
        """Take it out of its Services; the caller then calls `stop`."""
        self._left_at = time.monotonic() if self.ready else self._left_at
        self.terminating = True
        self.tell("is being stopped")
        self._on_change()

    async def stop(self) -> None:
        """End its containers within its grace, and wait until they are gone."""
        if not self.terminating:
            self.leave()
        began = time.monotonic()
        await asyncio.gather(*(container.stop(self.template.grace_s) for container in self.containers))
        await self._end_keepers()
        self.tell(f"is gone after {time.monotonic() - began:.1f} s")

    async def kill(self) -> None:
        """End it at once, with everything in it."""
        self.terminating = True
        for container in self.containers:
            await container.kill()
        await self._end_keepers()

    async def _end_keepers(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def readiness_changed(self) -> None:
        """A container calls this when it became ready or unready."""
        ready = all(container.ready for container in self.containers)
        if ready != (self.ready_at is not None):
            self._left_at = self._left_at if self.terminating or ready else time.monotonic()
            self.ready_at = time.monotonic() if ready else None
            if not self.terminating:
                self.tell("is ready" if ready else "is not ready")
            self._on_change()

    def tell(self, what: str) -> None:
        """Report an event as a line."""
        self._on_event(f"{self.name}: {what}")

"""The manifests at work: pods as their controllers want them, Services in front of them."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from deploy.rehearsal.manifests import Container, Manifests, Mount, PodTemplate, Volume, Workload
from deploy.rehearsal.network import Network
from deploy.rehearsal.pod import Pod
from deploy.rehearsal.rollout import PodView, Wanted, is_settled, next_moves
from deploy.rehearsal.runtime import Identity, IsolatedRuntime, PlainRuntime
from deploy.rehearsal.services import ServiceProxy, endpoints, hosts_text

NODE = "rehearsal-node"
_ROUND_S = 0.1
_OUT = "/out"


class NotInTime(AssertionError):
    """Something that should have come about has not; the message names it."""


@dataclass(frozen=True)
class Event:
    """A line of what happened, `at_s` after the cluster was made."""

    at_s: float
    what: str


@dataclass(frozen=True)
class Errand:
    """A command under way in a pod of its own. `out`: where its folder /out lies here."""

    process: asyncio.subprocess.Process
    out: Path

    async def ended(self, within_s: float) -> int:
        """Its exit status. Raises NotInTime."""
        try:
            return await asyncio.wait_for(self.process.wait(), within_s)
        except TimeoutError:
            raise NotInTime(f"a client has not ended within {within_s:g} s") from None


class Cluster:
    """`async with Cluster(...) as cluster`: workloads run as they are wanted inside the block, and are gone after it.

    Inside: change what is wanted (`scale`, `restart`, `put`), then wait for it (`settled`).
    """

    def __init__(
        self,
        manifests: Manifests,
        network: Network,
        runtime: IsolatedRuntime | PlainRuntime,
        state: Path,
        logs: Path,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.events: list[Event] = []
        self.killed_after_grace = 0
        self.unfit = 0
        self._manifests = manifests
        self._network = network
        self._runtime = runtime
        self._state = state
        self._logs = logs
        self._on_event = on_event
        self._began = time.monotonic()
        self._wanted: dict[str, Workload] = dict(manifests.workloads)
        self._pods: list[Pod] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._proxies: dict[str, ServiceProxy] = {}
        self._controlling: asyncio.Task[None] | None = None
        self._hosts = ""

    async def __aenter__(self) -> Self:
        plain = isinstance(self._runtime, PlainRuntime)
        for service in self._manifests.services.values():
            if not service.headless or plain:
                proxy = ServiceProxy(service, self._network.service_address(), lambda: self._pods)
                await proxy.start()
                self._proxies[service.name] = proxy
        self._publish()
        self._controlling = asyncio.create_task(self._control())
        return self

    async def __aexit__(self, *raised: object) -> None:
        if self._controlling:
            self._controlling.cancel()
            await asyncio.gather(self._controlling, return_exceptions=True)
        for stopping in self._stopping:
            stopping.cancel()
        await asyncio.gather(*self._stopping, *(pod.kill() for pod in self._pods), return_exceptions=True)
        for proxy in self._proxies.values():
            await proxy.close()

    async def run(self, name: str, image: str, command: Sequence[str]) -> "Errand":
        """A pod of its own that runs one command, with a folder at /out that the command may fill."""
        container = Container(name, image, tuple(command), mounts=(Mount("out", _OUT),))
        volume = Volume("out", "emptyDir")
        template = PodTemplate({}, (container,), (volume,), 0.0, "")
        identity = self._identity(name)
        self._runtime.prepare(identity, template)
        process = await self._runtime.start(identity, container, self._logs / f"{name}.log")
        return Errand(process, self._runtime.volume(identity, volume))

    # ---- what is wanted

    def scale(self, name: str, replicas: int) -> None:
        """`kubectl scale`."""
        self._tell(f"{name}: {self._wanted[name].replicas} -> {replicas} replicas wanted")
        self._wanted[name] = replace(self._wanted[name], replicas=replicas)

    def restart(self, name: str) -> None:
        """`kubectl rollout restart`."""
        self._tell(f"{name}: a rolling restart is wanted")
        workload = self._wanted[name]
        template = replace(workload.template, revision=secrets.token_hex(4))
        self._wanted[name] = replace(workload, template=template)

    def put(self, workload: Workload) -> None:
        """`kubectl apply` of one workload."""
        self._wanted[workload.name] = workload

    def workload(self, name: str) -> Workload:
        """A workload as it is wanted."""
        return self._wanted[name]

    # ---- what is

    def pods(self, *workloads: str) -> list[Pod]:
        """The pods of these workloads, or all; those that are being stopped among them."""
        return [pod for pod in self._pods if not workloads or pod.workload in workloads]

    def address(self, service: str, port: int) -> str:
        """Where this process reaches a Service."""
        return f"{self._proxies[service].address}:{port}"

    async def settled(self, *names: str, within_s: float) -> None:
        """Return once these workloads (or all) are as wanted and nothing of them is being stopped. Raises NotInTime."""

        def done() -> bool:
            return all(self._is_settled(self._wanted[name]) for name in names or self._wanted)

        await self.until(done, f"{', '.join(names or self._wanted)} as wanted", within_s)

    async def until(self, condition: Callable[[], bool], what: str, within_s: float) -> None:
        """Return once `condition` holds. Raises NotInTime, with the pods that there are."""
        give_up_at = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > give_up_at:
                pods = ", ".join(f"{pod.name} ({_state(pod)})" for pod in self._pods)
                raise NotInTime(f"{what}: not within {within_s:g} s; pods: {pods or 'none'}")
            await asyncio.sleep(_ROUND_S)

    # ---- controllers

    async def _control(self) -> None:
        while True:
            for workload in list(self._wanted.values()):
                self._step(workload)
            self._publish()
            await asyncio.sleep(_ROUND_S)

    def _step(self, workload: Workload) -> None:
        pods = self.pods(workload.name)
        moves = next_moves(_wanted(workload), _views(pods))
        in_turn = workload.kind == "StatefulSet"
        if not in_turn or not any(pod.terminating for pod in pods):
            for _ in range(moves.create):
                self._create(workload)
        for pod in pods:
            if pod.name in moves.stop:
                self.stop(pod)

    def _create(self, workload: Workload) -> None:
        taken = {pod.name for pod in self._pods}
        if workload.kind == "StatefulSet":
            name = next(n for i in range(workload.replicas) if (n := f"{workload.name}-{i}") not in taken)
        else:
            name = f"{workload.name}-{workload.template.revision}-{secrets.token_hex(2)}"
        pod = self._new_pod(name, workload)
        self._pods.append(pod)
        pod.tell("is created")
        pod.start()

    def _new_pod(self, name: str, workload: Workload) -> Pod:
        identity = self._identity(name)
        self._runtime.prepare(identity, workload.template)
        return Pod(
            identity,
            workload.name,
            workload.template,
            self._runtime,
            self._logs,
            on_change=self._publish,
            on_event=self._tell,
        )

    def _identity(self, name: str) -> Identity:
        home = self._state / "pods" / name
        home.mkdir(parents=True)
        place, node_ip = self._network.place(), self._network.node_ip
        return Identity(name, self._manifests.namespace, secrets.token_hex(8), NODE, node_ip, place, home)

    def stop(self, pod: Pod) -> None:
        """`kubectl delete pod`, or an eviction: its workload makes another one at once."""
        if not pod.terminating:
            pod.leave()
            task = asyncio.create_task(self._end(pod))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _end(self, pod: Pod) -> None:
        await pod.stop()
        if pod in self._pods:
            self._pods.remove(pod)
            self.killed_after_grace += pod.killed_after_grace
            self.unfit += pod.unfit
            self._runtime.discard(pod.identity)
            self._network.remove(pod.identity.place)

    def _is_settled(self, workload: Workload) -> bool:
        pods = self.pods(workload.name)
        return is_settled(_wanted(workload), _views(pods)) and not any(pod.terminating for pod in pods)

    # ---- Services

    def _publish(self) -> None:
        """Let names lead to where they should by now."""
        services = self._manifests.services
        if isinstance(self._runtime, PlainRuntime):
            self._runtime.resolve({name: proxy.address for name, proxy in self._proxies.items()})
            return
        addresses: dict[str, Sequence[str]] = {name: [proxy.address] for name, proxy in self._proxies.items()}
        for name, service in services.items():
            if name not in addresses:
                addresses[name] = sorted(pod.ip for pod in endpoints(service, self._pods))
        text = hosts_text(addresses, self._manifests.namespace)
        if text != self._hosts:
            self._hosts = text
            self._runtime.write_hosts(text)

    def _tell(self, what: str) -> None:
        event = Event(time.monotonic() - self._began, what)
        self.events.append(event)
        self._on_event(event)


def _wanted(workload: Workload) -> Wanted:
    return Wanted(workload.replicas, workload.template.revision, workload.surge, workload.unavailable)


def _views(pods: Sequence[Pod]) -> list[PodView]:
    return [
        PodView(pod.name, pod.template.revision, pod.created_at, pod.ready_at) for pod in pods if not pod.terminating
    ]


def _state(pod: Pod) -> str:
    return "being stopped" if pod.terminating else "ready" if pod.ready else "not ready"

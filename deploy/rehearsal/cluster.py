"""The running manifests: pods as their controllers want them, Services in front of them."""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from bench.processes import forwarding
from deploy.rehearsal.manifests import Container, Manifests, Mount, PodTemplate, Service, Volume, Workload
from deploy.rehearsal.node import Node
from deploy.rehearsal.pod import Pod
from deploy.rehearsal.rollout import is_settled, next_moves
from synerdiff.stopping import cancel_and_wait

_ROUND_S = 0.1
_OUT = "/out"


class NotInTime(AssertionError):
    """A condition did not hold in time; the message names it."""


class Cluster:
    """`async with Cluster(...) as cluster`: workloads run as they are wanted inside the block, and are gone after it.

    Inside: change the wanted state (`scale`, `restart`, `put`), then wait for it (`settled`).
    """

    def __init__(
        self, manifests: Manifests, node: Node, logs: Path, patience_s: float, on_event: Callable[[float, str], None]
    ) -> None:
        self.killed_after_grace = 0
        self.unfit = 0
        self._manifests = manifests
        self._node = node
        self._logs = logs
        self._patience_s = patience_s
        self._on_event = on_event
        self._began = time.monotonic()
        self._wanted: dict[str, Workload] = dict(manifests.workloads)
        self._pods: list[Pod] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._services = contextlib.AsyncExitStack()
        self._addresses: dict[str, str] = {}
        self._controlling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for service in self._manifests.services.values():
            if not (service.headless and self._node.addresses_by_name):
                address = self._addresses[service.name] = self._node.service_address()
                for port, target in service.ports.items():
                    chosen = partial(self._chosen, service, target)
                    await self._services.enter_async_context(forwarding(chosen, (address, port)))
        self._publish()
        self._controlling = asyncio.create_task(self._control())
        return self

    async def __aexit__(self, *raised: object) -> None:
        if self._controlling:
            await cancel_and_wait(self._controlling)
        await cancel_and_wait(*self._stopping)
        await asyncio.gather(*(pod.kill() for pod in self._pods), return_exceptions=True)
        await self._services.aclose()

    async def run(self, name: str, image: str, command: Sequence[str]) -> tuple[asyncio.subprocess.Process, Path]:
        """A pod of its own that runs one command, and where its folder /out lies here, which the command may fill."""
        container = Container(name, image, tuple(command), mounts=(Mount("out", _OUT),))
        template = PodTemplate({}, (container,), (Volume("out", "emptyDir"),), 0.0, "")
        pod = self._node.admit(name, self._manifests.namespace, template)
        return await self._node.start(pod, container, self._logs / f"{name}.log"), pod.volumes["out"]

    # ---- the wanted state

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

    # ---- the current state

    def pods(self, *workloads: str) -> list[Pod]:
        """The pods of these workloads, or all; those that are being stopped among them."""
        return [pod for pod in self._pods if not workloads or pod.workload in workloads]

    async def settled(self, *names: str) -> None:
        """Return once these workloads (or all) are as wanted and nothing of them is being stopped. Raises NotInTime."""

        def done() -> bool:
            return all(self._is_settled(self._wanted[name]) for name in names or self._wanted)

        await self.until(done, f"{', '.join(names or self._wanted)} as wanted")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once `condition` holds. Raises NotInTime, with the pods that there are."""
        give_up_at = time.monotonic() + self._patience_s
        while not condition():
            if time.monotonic() > give_up_at:
                pods = ", ".join(f"{pod.name} ({_state(pod)})" for pod in self._pods)
                raise NotInTime(f"{what}: not within {self._patience_s:g} s; pods: {pods or 'none'}")
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
        moves = next_moves(workload, [pod for pod in pods if not pod.terminating])
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
        identity = self._node.admit(name, self._manifests.namespace, workload.template)
        changed, tell = self._publish, self._tell
        pod = Pod(
            identity, workload.name, workload.template, self._node.start, self._logs, on_change=changed, on_event=tell
        )
        self._pods.append(pod)
        pod.tell("is created")
        pod.start()

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
            self._node.discard(pod.identity)

    def _is_settled(self, workload: Workload) -> bool:
        pods = self.pods(workload.name)
        return is_settled(workload, pods) and not any(pod.terminating for pod in pods)

    # ---- Services

    def _publish(self) -> None:
        """Update the addresses of the Services' names."""
        addresses = {name: [address] for name, address in self._addresses.items()}
        for name, service in self._manifests.services.items():
            if name not in addresses:
                addresses[name] = sorted(pod.ip for pod in self._endpoints(service))
        self._node.publish(addresses, self._manifests.namespace)

    def _endpoints(self, service: Service) -> list[Pod]:
        """The pods that a Service leads to just now."""
        pods = (pod for pod in self._pods if service.selector.items() <= pod.template.labels.items())
        taking = (pod for pod in pods if pod.in_service or (service.publish_not_ready and not pod.terminating))
        return list(taking) if service.selector else []

    def _chosen(self, service: Service, target: int | str) -> list[tuple[str, int]]:
        """The target of a connection to a Service's port, to its end: a pod drawn at random, if there is one.

        As kube-proxy has it: one to a pod that is being stopped is left alone.
        """
        endpoints = self._endpoints(service)
        if not endpoints:
            return []
        pod = random.choice(endpoints)
        ports = {name: port for each in pod.template.containers for name, port in each.ports.items()}
        return [(pod.ip, target if isinstance(target, int) else ports[target])]

    def _tell(self, what: str) -> None:
        self._on_event(time.monotonic() - self._began, what)


def _state(pod: Pod) -> str:
    return "being stopped" if pod.terminating else "ready" if pod.ready else "not ready"

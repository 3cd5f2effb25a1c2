"""Services: names and addresses for whichever pods are ready, with connections spread over them."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence

from deploy.rehearsal.manifests import Service
from deploy.rehearsal.pod import Pod

_CHUNK_BYTES = 1 << 16
_CONNECT_TIMEOUT_S = 2.0


def selects(service: Service, pod: Pod) -> bool:
    """Whether the Service means this pod."""
    return bool(service.selector) and service.selector.items() <= pod.template.labels.items()


def endpoints(service: Service, pods: Sequence[Pod]) -> list[Pod]:
    """The pods that a Service leads to just now."""
    taking = (pod for pod in pods if pod.in_service or (service.publish_not_ready and not pod.terminating))
    return [pod for pod in taking if selects(service, pod)]


class ServiceProxy:
    """A Service's address: each connection goes to one of its pods, drawn by chance, and stays there to its end.

    As kube-proxy has it: without a pod a connection is refused, one to a pod that is being stopped is left alone.
    """

    def __init__(self, service: Service, address: str, pods: Callable[[], Sequence[Pod]]) -> None:
        self.service = service
        self.address = address
        self._pods = pods
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on all of the Service's ports. Raises OSError."""
        for port, target in self.service.ports.items():
            self._servers.append(await asyncio.start_server(self._accepter(target), self.address, port))

    async def close(self) -> None:
        """Listen no more and end every connection."""
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepter(self, target: int | str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = asyncio.create_task(self._connect(reader, writer, target))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

        return accept

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int | str) -> None:
        with contextlib.closing(writer):
            chosen = endpoints(self.service, self._pods())
            if not chosen:
                return
            pod = random.choice(chosen)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    there, back = await asyncio.open_connection(pod.ip, target_port(pod, target))
                with contextlib.closing(back):
                    await _pass_on_both_ways((reader, back), (there, writer))


def target_port(pod: Pod, target: int | str) -> int:
    """The port of a pod that a Service's target names. Raises KeyError for a name that no container has."""
    if isinstance(target, int):
        return target
    ports: Mapping[str, int] = {name: port for c in pod.template.containers for name, port in c.ports.items()}
    return ports[target]


async def _pass_on_both_ways(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Until either side has ended."""
    passing = [asyncio.create_task(_pass_on(reader, writer)) for reader, writer in ways]
    try:
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in passing:
            way.cancel()
        await asyncio.gather(*passing, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def hosts_text(addresses: Mapping[str, Sequence[str]], namespace: str) -> str:
    """/etc/hosts with the names of Services, short and full, for the addresses they lead to."""
    lines = ["127.0.0.1 localhost"]
    for name, ips in addresses.items():
        names = f"{name} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local"
        lines += [f"{ip} {names}" for ip in ips]
    return "\n".join(lines) + "\n"

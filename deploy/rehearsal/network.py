"""Where pods and Services live: a bridge with a network namespace per pod, or loopback addresses of this machine."""

import ipaddress
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.rehearsal import namespaces

_BRIDGE = "cluster0"


@dataclass(frozen=True)
class Place:
    """Where a pod is. `namespace`: the path of its network namespace; empty where it has none."""

    ip: str
    namespace: str = ""


class BridgedNetwork:
    """Pods in namespaces of their own on a bridge, Services as addresses of the bridge.

    For a process that is in a network namespace of its own: all of this ends with it. Raises OSError or
    subprocess.CalledProcessError where it is not permitted.
    """

    node_ip = "10.244.0.1"

    def __init__(self) -> None:
        self._pods = ipaddress.ip_network("10.244.0.0/16").hosts()
        self._services = ipaddress.ip_network("10.96.0.0/16").hosts()
        self._handles: dict[str, int] = {}
        next(self._pods)
        _ip("link set lo up", f"link add {_BRIDGE} type bridge", f"addr add {self.node_ip}/16 dev {_BRIDGE}")
        _ip(f"link set {_BRIDGE} up")

    def place(self) -> Place:
        """A namespace with one interface on the bridge."""
        ip, handle = str(next(self._pods)), namespaces.new_network()
        path, end = f"/proc/{os.getpid()}/fd/{handle}", f"pod{ip.replace('.', '')[5:]}"
        self._handles[ip] = handle
        _ip(f"link add {end} type veth peer name eth0 netns {path}", f"link set {end} master {_BRIDGE} up")
        with namespaces.inside_network(path):
            _ip(f"addr add {ip}/16 dev eth0", "link set lo up", "link set eth0 up")
            _ip(f"route add default via {self.node_ip}")
        return Place(ip, path)

    def remove(self, place: Place) -> None:
        """Let the namespace end with its last process."""
        os.close(self._handles.pop(place.ip))

    def service_address(self) -> str:
        """An address of the bridge."""
        ip = str(next(self._services))
        _ip(f"addr add {ip}/32 dev {_BRIDGE}")
        return ip


class LoopbackNetwork:
    """Addresses 127.x.y.z of this machine, all of them reachable by everybody: nothing is kept apart."""

    node_ip = "127.0.0.1"

    def __init__(self) -> None:
        # Two rehearsals at once on one machine shall not meet.
        self._addresses = _loopback_addresses(os.getpid())

    def place(self) -> Place:
        """An address."""
        return Place(next(self._addresses))

    def remove(self, place: Place) -> None:
        """Nothing was made."""

    def service_address(self) -> str:
        """An address like a pod's."""
        return next(self._addresses)


Network = BridgedNetwork | LoopbackNetwork


def _loopback_addresses(number: int) -> Iterator[str]:
    for low in itertools.count(1):
        yield str(ipaddress.ip_address("127.64.0.0") + (number % (1 << 13)) * 256 + low)


def _ip(*commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, capture_output=True)

"""The node that pods run on: their addresses, volumes and images, and their containers as processes of this machine.

`python -m deploy.rehearsal.node` tries an isolated one out and says by its exit status whether this machine permits it.
"""

import asyncio
import ipaddress
import itertools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.rehearsal import container
from deploy.rehearsal.images import Image, stand_in, visible
from deploy.rehearsal.manifests import POD_FIELDS, Container, PodTemplate
from synerdiff import lifeline


@dataclass(frozen=True)
class Identity:
    """A pod as its containers know it. `home`: a folder for as long as it exists; `volumes`: where each lies;
    `network`: the path of its network namespace, empty where it has none.
    """

    name: str
    namespace: str
    ip: str
    node_ip: str
    home: Path
    volumes: Mapping[str, Path] = field(default_factory=dict)
    network: str = ""
    node: str = "rehearsal-node"
    uid: str = field(default_factory=lambda: secrets.token_hex(8))


class Node(ABC):
    """Runs containers, and keeps their files under `state`. Claims outlive their pods.

    `description` says in words how pods are kept apart; `addresses_by_name`: whether a name leads to any number of
    addresses, or each Service needs one of its own.
    """

    node_ip: str
    description: str
    addresses_by_name: bool

    def __init__(self, state: Path) -> None:
        self._state = state
        self._hosts = state / "hosts"
        self._hosts.mkdir(parents=True)

    def admit(self, name: str, namespace: str, template: PodTemplate) -> Identity:
        """Make a pod's address and volumes. Claims belong to the pod's name, all else to the pod."""
        home = self._state / "pods" / name
        home.mkdir(parents=True)
        volumes = {}
        for volume in template.volumes:
            kept = self._state / "claims" / f"{volume.name}-{name}"
            folder = volumes[volume.name] = kept if volume.kind == "claim" else home / "volumes" / volume.name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
            for file, text in volume.files.items():
                (folder / file).write_text(text)
        ip, network = self._place()
        return Identity(name, namespace, ip, self.node_ip, home, volumes, network)

    def discard(self, pod: Identity) -> None:
        """Remove the files that `admit` made, but for claims."""
        shutil.rmtree(pod.home)

    @abstractmethod
    def _place(self) -> tuple[str, str]:
        """A pod's address, and its network namespace."""

    @abstractmethod
    def service_address(self) -> str:
        """An address for a Service."""

    @abstractmethod
    def publish(self, addresses: Mapping[str, Sequence[str]], namespace: str) -> None:
        """Where the names of Services lead from now on."""

    @abstractmethod
    async def start(
        self, pod: Identity, spec: Container, log: Path, command: Sequence[str] = ()
    ) -> asyncio.subprocess.Process:
        """Run the container, or another `command` in its stead; output goes to the end of `log`."""


class IsolatedNode(Node):
    """Containers with their own process ids, files, /dev/shm, user and network: see container.py. Pods have network
    namespaces on a bridge, of which Services are addresses.

    Takes namespaces for this process, before it has threads: all of this ends with it. Raises OSError or
    subprocess.CalledProcessError where it is not permitted.
    """

    node_ip = "10.244.0.1"
    addresses_by_name = True
    # A folder on this machine's disk to mount over: the mount is visible only in this namespace.
    _MOUNT_POINT = Path("/run/synerdiff-rehearsal")
    _BRIDGE = "cluster0"
    # The size of a container's /dev/shm where no volume is mounted there.
    _SHM_BYTES = 64 << 20

    def __init__(self) -> None:
        container.unshare(container.NEW_NETWORK | container.NEW_MOUNTS)
        container.mount("", "/", flags=container.PRIVATE | container.RECURSIVE)
        self._MOUNT_POINT.mkdir(exist_ok=True)
        container.mount("rehearsal", str(self._MOUNT_POINT), "tmpfs")
        super().__init__(self._MOUNT_POINT)
        users = "each container as its user" if os.getuid() == 0 else "every container as this user"
        self.description = (
            f"a network namespace per pod; own files, process ids and /dev/shm; {users}; Services by a proxy"
        )
        self._pod_ips = ipaddress.ip_network("10.244.0.0/16").hosts()
        self._service_ips = ipaddress.ip_network("10.96.0.0/16").hosts()
        self._networks: dict[str, int] = {}
        self._starts = itertools.count(1)
        self._text = ""
        next(self._pod_ips)
        bridge = self._BRIDGE
        _ip("link set lo up", f"link add {bridge} type bridge", f"addr add {self.node_ip}/16 dev {bridge}")
        _ip(f"link set {bridge} up")

    def admit(self, name: str, namespace: str, template: PodTemplate) -> Identity:
        """Also a /dev/shm that the pod's containers share."""
        pod = super().admit(name, namespace, template)
        (pod.home / "shm").mkdir()
        container.mount("shm", str(pod.home / "shm"), "tmpfs", options=f"size={self._SHM_BYTES},mode=1777")
        return pod

    def discard(self, pod: Identity) -> None:
        """Remove all but its claims; its network ends with its last process."""
        container.unmount(str(pod.home / "shm"))
        super().discard(pod)
        os.close(self._networks.pop(pod.ip))

    def _place(self) -> tuple[str, str]:
        """A namespace with one interface on the bridge."""
        ip, handle = str(next(self._pod_ips)), container.new_network()
        path, end = f"/proc/{os.getpid()}/fd/{handle}", f"pod{ip.replace('.', '')[5:]}"
        self._networks[ip] = handle
        _ip(f"link add {end} type veth peer name eth0 netns {path}", f"link set {end} master {self._BRIDGE} up")
        with container.inside_network(path):
            _ip(f"addr add {ip}/16 dev eth0", "link set lo up", "link set eth0 up")
            _ip(f"route add default via {self.node_ip}")
        return ip, path

    def service_address(self) -> str:
        """An address of the bridge."""
        ip = str(next(self._service_ips))
        _ip(f"addr add {ip}/32 dev {self._BRIDGE}")
        return ip

    def publish(self, addresses: Mapping[str, Sequence[str]], namespace: str) -> None:
        """By /etc/hosts in every container; there is no other source of names."""
        lines = ["127.0.0.1 localhost"]
        for name, ips in addresses.items():
            names = f"{name} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local"
            lines += [f"{ip} {names}" for ip in ips]
        text, self._text = self._text, "\n".join(lines) + "\n"
        if text != self._text:
            # Nobody listens there: a name that hosts lack is refused at once, not after a resolver's timeout.
            (self._hosts / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            coming = self._hosts / "coming"
            coming.write_text(self._text)
            coming.rename(self._hosts / "hosts")

    async def start(
        self, pod: Identity, spec: Container, log: Path, command: Sequence[str] = ()
    ) -> asyncio.subprocess.Process:
        """Run it through container.py, which is killed when this process ends."""
        scratch = pod.home / f"{spec.name}-{next(self._starts)}"
        scratch.mkdir()
        image = stand_in(spec.image)
        environment = environment_of(spec, pod, image)
        told = {
            "network": pod.network,
            "scratch": str(scratch),
            "links": dict(image.links),
            "binds": [(str(pod.volumes[m.volume] / m.sub_path), m.path, m.read_only) for m in spec.mounts],
            "hosts": str(self._hosts),
            "shm": str(pod.home / "shm"),
            "visible": visible(),
            "read_only": spec.read_only_root,
            "uid": spec.uid,
            "gid": spec.gid,
            "cwd": spec.working_dir or image.working_dir,
            "environment": environment,
            "command": list(command) or command_of(spec, image, environment),
            "hostname": pod.name,
        }
        (scratch / "spec.json").write_text(json.dumps(told))
        return await _run((str(container.__file__), str(os.getpid()), str(scratch / "spec.json")), log)


class LoopbackNode(Node):
    """Containers as plain processes with an address 127.x.y.z of this machine. Paths and addresses in their settings
    are rewritten; the user, the read-only root, /dev/shm and the process ids are this machine's.
    """

    node_ip = "127.0.0.1"
    addresses_by_name = False

    def __init__(self, state: Path, reason: str) -> None:
        super().__init__(state)
        self.description = (
            f"NO NAMESPACES ({reason}): an address 127.x.y.z per pod, settings rewritten for it; user, files, process "
            "ids and /dev/shm are this machine's"
        )
        self._names: dict[str, str] = {}
        # Two rehearsals at once on one machine shall not meet.
        self._addresses = itertools.count(int(ipaddress.ip_address("127.64.0.1")) + os.getpid() % (1 << 13) * 256)

    def _place(self) -> tuple[str, str]:
        return self.service_address(), ""

    def service_address(self) -> str:
        """An address like a pod's."""
        return str(ipaddress.ip_address(next(self._addresses)))

    def publish(self, addresses: Mapping[str, Sequence[str]], namespace: str) -> None:
        """For containers that start from now on."""
        self._names = {name: ips[0] for name, ips in addresses.items()}

    async def start(
        self, pod: Identity, spec: Container, log: Path, command: Sequence[str] = ()
    ) -> asyncio.subprocess.Process:
        """Run it bound to this process's life."""
        image = stand_in(spec.image)
        given = environment_of(spec, pod, image)
        environment = {name: self._local(text, pod, spec, image) for name, text in given.items()}
        if "SYNERDIFF_METRICS_PORT" in environment:
            environment["SYNERDIFF_METRICS_PORT"] = "0"  # served on every address, so once a machine only
        words = [self._local(word, pod, spec, image) for word in command or command_of(spec, image, given)]
        if Path(words[0]).name == "redis-server":
            words += ["--bind", pod.ip]
        if Path(words[0]).name == "redis_cli.py":
            words[1:1] = ["-h", pod.ip]
        bound_to_us = (str(lifeline.__file__), str(os.getpid()), *words)
        return await _run(bound_to_us, log, env=environment, cwd=image.links.get("/app", str(pod.home)))

    def _local(self, text: str, pod: Identity, spec: Container, image: Image) -> str:
        """A text with the container's paths and addresses replaced by this machine's."""
        paths = {m.path: str(pod.volumes[m.volume] / m.sub_path) for m in spec.mounts}
        paths |= {link: target for link, target in image.links.items() if not link.startswith("/image")}
        for inside, here in paths.items():
            text = re.sub(rf"^{re.escape(inside)}(?=/|$)", here, text)
        for link, target in image.links.items():
            text = target if text == Path(link).name and link.startswith("/image") else text
        for name, address in self._names.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?=:\d)", address, text)
        return text.replace("0.0.0.0:", f"{pod.ip}:").replace("[::]:", f"{pod.ip}:")


def environment_of(spec: Container, pod: Identity, image: Image) -> dict[str, str]:
    """The image's variables, then the container's: $(NAME) stands for an earlier one; others stay as written."""
    environment = {**image.environment, "HOSTNAME": pod.name}
    for variable in spec.environment:
        of_the_pod = variable.field and str(getattr(pod, POD_FIELDS[variable.field]))
        environment[variable.name] = of_the_pod or _expanded(variable.value, environment)
    return environment


def command_of(spec: Container, image: Image, environment: Mapping[str, str]) -> list[str]:
    """The command line with its variables filled in."""
    words = [_expanded(word, environment) for word in (*spec.command, *spec.args)]
    return words + list(image.built_in.get(words[0], ()))


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda match: environment.get(match[1], match[0]), text)


async def _run(words: Sequence[str], log: Path, **options: Any) -> asyncio.subprocess.Process:
    """A process in a session of its own, by an interpreter that imports nothing by itself."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **options,
        )


def _ip(*commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, capture_output=True)


# ---- which of them


def why_not_isolated() -> str:
    """Why this machine does not permit namespaces; empty where it does. Tried out in a process of its own."""
    command = [sys.executable, "-m", "deploy.rehearsal.node"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return tried.stderr.strip().rpartition("\n")[2] or "unknown" if tried.returncode else ""


async def _try_out() -> int:
    node = IsolatedNode()
    spec = Container("trial", "synerdiff/scheduler:trial", ("true",), uid=10001, gid=10001, read_only_root=True)
    pod = node.admit("trial", "default", PodTemplate({}, (spec,), (), 0.0, ""))
    node.publish({}, "default")
    log = pod.home / "log"
    process = await node.start(pod, spec, log)
    status = await process.wait()
    print(log.read_text(), file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(_try_out()))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))

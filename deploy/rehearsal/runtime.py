"""Starts containers as processes: in namespaces of their own, or plainly, where those are not permitted."""

import asyncio
import json
import os
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.rehearsal import container, namespaces
from deploy.rehearsal.images import Image, stand_in
from deploy.rehearsal.manifests import Container, Mount, PodTemplate, Volume
from deploy.rehearsal.network import Place
from synerdiff import lifeline

# What a container's /dev/shm has where no volume is mounted there.
_SHM_BYTES = 64 << 20

_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_ISOLATED_PYTHON = (sys.executable, "-I", "-S")


@dataclass(frozen=True)
class Identity:
    """A pod as its containers know it. `home`: the folder that holds its volumes for as long as it exists."""

    name: str
    namespace: str
    uid: str
    node: str
    node_ip: str
    place: Place
    home: Path

    def value_of(self, path: str) -> str:
        """A field of the pod, for the downward API."""
        return {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": self.uid,
            "spec.nodeName": self.node,
            "status.podIP": self.place.ip,
            "status.hostIP": self.node_ip,
        }[path]


class Runtime(ABC):
    """Runs containers, and keeps what they see of files under `state`. Claims outlive their pods."""

    def __init__(self, state: Path) -> None:
        self._claims, self._hosts = state / "claims", state / "hosts"
        for folder in (self._claims, self._hosts):
            folder.mkdir(parents=True)
        self._templates: dict[str, PodTemplate] = {}

    def prepare(self, pod: Identity, template: PodTemplate) -> None:
        """Make the pod's volumes."""
        self._templates[pod.name] = template
        for volume in template.volumes:
            folder = self.volume(pod, volume)
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
            for name, text in volume.files.items():
                (folder / name).write_text(text)

    def discard(self, pod: Identity) -> None:
        """Remove what `prepare` made, but for claims."""
        shutil.rmtree(pod.home)
        del self._templates[pod.name]

    def volume(self, pod: Identity, volume: Volume) -> Path:
        """Where a volume lies on this machine. Claims belong to the pod's name, all else to the pod."""
        kept = volume.kind == "claim"
        return self._claims / f"{volume.name}-{pod.name}" if kept else pod.home / "volumes" / volume.name

    @abstractmethod
    async def start(
        self, pod: Identity, container_: Container, log: Path, command: Sequence[str] = ()
    ) -> asyncio.subprocess.Process:
        """Run the container, or another `command` in its stead; output goes to the end of `log`."""

    def _source(self, pod: Identity, mount: Mount) -> str:
        """What a mount shows."""
        volume = next(volume for volume in self._templates[pod.name].volumes if volume.name == mount.volume)
        return str(self.volume(pod, volume) / mount.sub_path)


async def _run(words: Sequence[str], log: Path, **options: Any) -> asyncio.subprocess.Process:
    """A process in a session of its own, by an interpreter that imports nothing by itself."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *(*_ISOLATED_PYTHON, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **options,
        )


class IsolatedRuntime(Runtime):
    """Containers with their own process ids, files, /dev/shm, user and network: see container.py."""

    _starts = 0

    def prepare(self, pod: Identity, template: PodTemplate) -> None:
        """Volumes, and a /dev/shm that the pod's containers share."""
        super().prepare(pod, template)
        shm = pod.home / "shm"
        shm.mkdir(parents=True)
        namespaces.mount("shm", str(shm), "tmpfs", options=f"size={_SHM_BYTES},mode=1777")

    def discard(self, pod: Identity) -> None:
        """Remove all but its claims."""
        namespaces.unmount(str(pod.home / "shm"))
        super().discard(pod)

    def write_hosts(self, text: str) -> None:
        """What /etc/hosts reads in every container from now on; there is no other source of names."""
        # Nobody listens there: a name that hosts lack is refused at once, not once a resolver has run out of patience.
        (self._hosts / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        coming = self._hosts / "coming"
        coming.write_text(text)
        coming.rename(self._hosts / "hosts")

    async def start(
        self, pod: Identity, container_: Container, log: Path, command: Sequence[str] = ()
    ) -> asyncio.subprocess.Process:
        """Run it through container.py, which is killed when this process ends."""
        self._starts += 1
        scratch = pod.home / f"{container_.name}-{self._starts}"
        scratch.mkdir()
        spec = scratch / "spec.json"
        spec.write_text(json.dumps(self._spec(pod, container_, scratch, command)))
        return await _run((str(container.__file__), str(os.getpid()), str(spec)), log)

    def _spec(self, pod: Identity, container_: Container, scratch: Path, command: Sequence[str]) -> dict[str, object]:
        image = stand_in(container_.image)
        environment = environment_of(container_, pod, image)
        binds = [(self._source(pod, m), m.path, m.read_only) for m in container_.mounts]
        return {
            "network": pod.place.namespace,
            "scratch": str(scratch),
            "links": dict(image.links),
            "binds": binds,
            "hosts": str(self._hosts),
            "shm": str(pod.home / "shm"),
            "visible": list(image.visible),
            "read_only": container_.read_only_root,
            "uid": container_.uid,
            "gid": container_.gid,
            "cwd": container_.working_dir or image.working_dir,
            "environment": environment,
            "command": list(command) or command_of(container_, image, environment),
            "hostname": pod.name,
        }


class PlainRuntime(Runtime):
    """Containers as plain processes with an address of their own. Paths and addresses in their settings are rewritten.

    The user, the read-only root, /dev/shm and the process ids are this machine's.
    """

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self._names: dict[str, str] = {}

    def resolve(self, names: Mapping[str, str]) -> None:
        """Service names and the addresses that stand for them."""
        self._names = dict(names)

    async def start(
        self, pod: Identity, container_: Container, log: Path, command: Sequence[str] = ()
    ) -> asyncio.subprocess.Process:
        """Run it bound to this process's life."""
        image = stand_in(container_.image)
        given = environment_of(container_, pod, image)
        environment = {name: self._local(text, pod, container_, image) for name, text in given.items()}
        if "SYNERDIFF_METRICS_PORT" in environment:
            environment["SYNERDIFF_METRICS_PORT"] = "0"  # served on every address, so once a machine only
        words = [self._local(word, pod, container_, image) for word in command or command_of(container_, image, given)]
        if Path(words[0]).name == "redis-server":
            words += ["--bind", pod.place.ip]
        if Path(words[0]).name == "redis_cli.py":
            words[1:1] = ["-h", pod.place.ip]
        bound_to_us = (str(lifeline.__file__), str(os.getpid()), *words)
        return await _run(bound_to_us, log, env=environment, cwd=image.links.get("/app", str(pod.home)))

    def _local(self, text: str, pod: Identity, container_: Container, image: Image) -> str:
        """What a text that names places inside the container says on this machine."""
        paths = {m.path: self._source(pod, m) for m in container_.mounts}
        paths |= {link: target for link, target in image.links.items() if not link.startswith("/image")}
        for inside, here in paths.items():
            text = re.sub(rf"^{re.escape(inside)}(?=/|$)", here, text)
        for link, target in image.links.items():
            text = target if text == Path(link).name and link.startswith("/image") else text
        for name, address in self._names.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?=:\d)", address, text)
        return text.replace("0.0.0.0:", f"{pod.place.ip}:").replace("[::]:", f"{pod.place.ip}:")


def environment_of(container_: Container, pod: Identity, image: Image) -> dict[str, str]:
    """The image's variables, then the container's: $(NAME) stands for an earlier one, one unknown stays as written."""
    environment = {**image.environment, "HOSTNAME": pod.name}
    for variable in container_.environment:
        value = pod.value_of(variable.field) if variable.field else _expanded(variable.value, environment)
        environment[variable.name] = value
    return environment


def command_of(container_: Container, image: Image, environment: Mapping[str, str]) -> list[str]:
    """The command line with its variables filled in."""
    words = [_expanded(word, environment) for word in (*container_.command, *container_.args)]
    return words + list(image.built_in.get(words[0], ()))


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda match: environment.get(match[1], match[0]), text)

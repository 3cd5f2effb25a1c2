"""Where a rehearsal takes place: in namespaces of its own, which end with it however it ends, or plainly.

`python -m deploy.rehearsal.sandbox` tries the former out and says by its exit status whether this machine permits it.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.rehearsal import namespaces
from deploy.rehearsal.manifests import Container, PodTemplate
from deploy.rehearsal.network import BridgedNetwork, LoopbackNetwork, Network
from deploy.rehearsal.runtime import Identity, IsolatedRuntime, PlainRuntime

# A folder on this machine's disk to mount over: what is mounted is seen in here alone.
_MOUNT_POINT = Path("/run/synerdiff-rehearsal")
_PREFIX = "synerdiff-rehearsal-"


@dataclass(frozen=True)
class Sandbox:
    """`description` says in words how pods are kept apart."""

    network: Network
    runtime: IsolatedRuntime | PlainRuntime
    state: Path
    description: str


def why_not_isolated() -> str:
    """Why this machine does not permit namespaces; empty where it does. Tried out in a process of its own."""
    command = [sys.executable, "-m", "deploy.rehearsal.sandbox"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return tried.stderr.strip().rpartition("\n")[2] or "unknown" if tried.returncode else ""


def isolated() -> Sandbox:
    """Take namespaces for this process, before it has threads. Raises OSError, subprocess.CalledProcessError."""
    namespaces.unshare(namespaces.NEW_NETWORK | namespaces.NEW_MOUNTS)
    namespaces.mount("", "/", flags=namespaces.PRIVATE | namespaces.RECURSIVE)
    _MOUNT_POINT.mkdir(exist_ok=True)
    namespaces.mount("rehearsal", str(_MOUNT_POINT), "tmpfs")
    users = "each container as its user" if os.getuid() == 0 else "every container as this user"
    return Sandbox(
        BridgedNetwork(),
        IsolatedRuntime(_MOUNT_POINT),
        _MOUNT_POINT,
        f"a network namespace per pod; own files, process ids and /dev/shm; {users}; Services by a proxy",
    )


def plain(folder: Path, reason: str) -> Sandbox:
    """Addresses of this machine's loopback, and plain processes."""
    state = folder / "state"
    return Sandbox(
        LoopbackNetwork(),
        PlainRuntime(state),
        state,
        f"NO NAMESPACES ({reason}): an address 127.x.y.z per pod, settings rewritten for it; user, files, process ids "
        "and /dev/shm are this machine's",
    )


def make_log_folder() -> Path:
    """A folder for logs, which is removed by the next rehearsal if this one is killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}[0-9]*"):
        if not Path(f"/proc/{left.name.removeprefix(_PREFIX)}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.gettempdir(), f"{_PREFIX}{os.getpid()}")
    folder.mkdir()
    return folder


def keep_log_folder(folder: Path) -> Path:
    """Let it stay for whoever wants to see what went wrong."""
    kept = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}failed-"))
    return folder.rename(kept / "logs")


async def _try_out() -> int:
    sandbox = isolated()
    home = sandbox.state / "pods" / "trial"
    home.mkdir(parents=True)
    pod = Identity("trial", "default", "0", "node", sandbox.network.node_ip, sandbox.network.place(), home)
    container = Container("trial", "synerdiff/scheduler:trial", ("true",), uid=10001, gid=10001, read_only_root=True)
    assert isinstance(sandbox.runtime, IsolatedRuntime)
    sandbox.runtime.prepare(pod, PodTemplate({}, (container,), (), 0.0, ""))
    sandbox.runtime.write_hosts("127.0.0.1 localhost\n")
    log = home / "log"
    process = await sandbox.runtime.start(pod, container, log)
    status = await process.wait()
    print(log.read_text(), file=sys.stderr)
    return status


def _main() -> int:
    try:
        return asyncio.run(_try_out())
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(_main())

"""Containers by Linux namespaces and mounts: `python container.py PARENT_PID SPEC` runs one's command.

SPEC is a file of JSON (see `main`). A script of its own that imports next to nothing. The process stays as the
container's keeper: it passes SIGTERM on, ends as the command ended, and takes the command with it when it is killed
itself. Everything it makes (mounts, process ids) belongs to namespaces that end with it.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from synerdiff import lifeline

_CANNOT_RUN = 127

NEW_MOUNTS = 0x00020000
NEW_HOSTNAME = 0x04000000
NEW_IPC = 0x08000000
NEW_PIDS = 0x20000000
NEW_NETWORK = 0x40000000

READ_ONLY = 0x1
REMOUNT = 0x20
BIND = 0x1000
RECURSIVE = 0x4000
PRIVATE = 0x40000

_PR_SET_NO_NEW_PRIVS = 38
_OWN_NETWORK = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Take namespaces of its own for the calling thread (new processes, for NEW_PIDS). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError naming the target."""
    words = [word.encode() or None for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def unmount(target: str) -> None:
    """Take a mount away as soon as nobody uses it. Raises OSError."""
    _check(_libc.umount2(target.encode(), 2), f"unmount {target}")


def enter_network(path: str) -> None:
    """Move the calling thread into the network namespace behind `path`. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(handle, NEW_NETWORK), "setns")
    finally:
        os.close(handle)


def new_network() -> int:
    """A network namespace as an open file: it lives as long as that file or a process in it. Raises OSError."""
    with _back_to_own_network():
        unshare(NEW_NETWORK)
        return os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def inside_network(path: str) -> Iterator[None]:
    """The calling thread, and processes it starts, in another network namespace. Nothing may be awaited inside."""
    with _back_to_own_network():
        enter_network(path)
        yield


@contextmanager
def _back_to_own_network() -> Iterator[None]:
    own = os.open(_OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _check(_libc.setns(own, NEW_NETWORK), "setns")
        os.close(own)


# ---- one container


def main() -> None:
    """Become the keeper of a container.

    SPEC: `network` (path of a namespace), `scratch` (an empty folder), `links`, `binds`, `hosts` (a folder), `shm` (a
    folder), `visible` (paths of this machine that the image stands on), `read_only`, `uid`, `gid`, `cwd`,
    `environment`, `command`, `hostname`.
    """
    parent, path = sys.argv[1:]
    lifeline.die_with_parent(int(parent))
    spec = json.loads(Path(path).read_text())
    enter_network(spec["network"])
    unshare(NEW_MOUNTS | NEW_PIDS | NEW_IPC | NEW_HOSTNAME)
    child = os.fork()
    if child == 0:
        _become(spec)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _become(spec: dict[str, Any]) -> None:
    try:
        lifeline.die_with_parent(0)  # the keeper's id as it reads in here
        socket.sethostname(spec["hostname"])
        root = _image(spec)
        os.chroot(root)
        os.chdir(spec["cwd"])
        if os.getuid() == 0 and spec["uid"]:
            os.setgroups([])
            os.setgid(spec["gid"])
            os.setuid(spec["uid"])
        # No program run from now on gains privileges by being run (allowPrivilegeEscalation: false).
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
        # Again: a change of user resets the parent-death signal.
        lifeline.die_with_parent(0)
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except OSError as error:
        print(f"cannot run {spec['command'][0]}: {error}", file=sys.stderr, flush=True)
        os._exit(_CANNOT_RUN)


def _image(spec: dict[str, Any]) -> str:
    """The container's own view of the files: this machine's, under a layer of its own. Returns its root."""
    mount("", "/", flags=PRIVATE | RECURSIVE)
    scratch = spec["scratch"]
    for name in ("upper", "work", "root"):
        os.makedirs(f"{scratch}/{name}", exist_ok=True)
    root = f"{scratch}/root"
    mount("overlay", root, "overlay", options=f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work")
    volumes = [target for _, target, _ in spec["binds"]]
    hidden = [path for path in spec["visible"] if any(Path(path).is_relative_to(target) for target in volumes)]
    _show(root, (path for path in spec["visible"] if path not in hidden))
    for link, target in spec["links"].items():
        _make_link(root + link, target)
    mount("proc", f"{root}/proc", "proc")
    mount("/sys", f"{root}/sys", flags=BIND | RECURSIVE)
    mount("/dev", f"{root}/dev", flags=BIND | RECURSIVE)
    mount(spec["shm"], f"{root}/dev/shm", flags=BIND)
    # A folder, not the file: the names in it change while the container runs, by a rename.
    _bind(spec["hosts"], f"{root}/run/cluster", read_only=True)
    _make_link(f"{root}/etc/hosts", "/run/cluster/hosts")
    _make_link(f"{root}/etc/resolv.conf", "/run/cluster/resolv.conf")
    for source, target, read_only in spec["binds"]:
        _bind(source, root + target, read_only)
    _show(root, hidden)  # a working tree in /tmp, say, where the container has a volume
    if spec["read_only"]:
        mount("", root, flags=REMOUNT | BIND | READ_ONLY)
    return root


def _show(root: str, paths: Iterable[str]) -> None:
    for path in paths:
        _let_through(root, path)
        _bind(path, root + path, read_only=True)


def _let_through(root: str, path: str) -> None:
    """Let every user pass the folders above `path`, in the container's layer alone: an image's own would."""
    for parent in Path(path).parents:
        inside = root + str(parent)
        if os.path.isdir(inside) and not os.stat(inside).st_mode & 0o001:
            os.chmod(inside, os.stat(inside).st_mode | 0o011)


def _bind(source: str, target: str, read_only: bool) -> None:
    os.makedirs(target, exist_ok=True)
    mount(source, target, flags=BIND | RECURSIVE)
    if read_only:
        mount("", target, flags=REMOUNT | BIND | READ_ONLY)


def _make_link(link: str, target: str) -> None:
    os.makedirs(os.path.dirname(link), exist_ok=True)
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(target, link)


if __name__ == "__main__":
    main()

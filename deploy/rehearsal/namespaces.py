"""Linux namespaces and mounts by system call. Imports next to nothing: every container starts through it."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

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


def forbid_new_privileges() -> None:
    """No program run from now on gains privileges by being run (allowPrivilegeEscalation: false)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def set_hostname(name: str) -> None:
    """Name this machine, for those in the same NEW_HOSTNAME namespace. Raises OSError."""
    _check(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


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

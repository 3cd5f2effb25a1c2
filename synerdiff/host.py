"""The identity of this machine, and the files under /dev/shm that its processes share.

Containers with pids of their own may share one /dev/shm, where a pid identifies no process; a lock ends with its owner.
"""

import fcntl
import os
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """The id of this host since its boot; containers of one host share it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SHARED_MEMORY_DIRECTORY = Path("/dev/shm")


def sweep(directory: Path, prefix: str) -> list[Path]:
    """Remove this user's files named `prefix...` without a lock, and return their paths. Raises OSError."""
    names = (path for path in sorted(directory.iterdir()) if path.name.startswith(prefix))
    return [path for path in names if _remove_if_dead(path)]


def _remove_if_dead(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # another user's, or gone
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:  # a live process holds it, or another sweeper was first
        return False
    finally:
        os.close(descriptor)
    return True

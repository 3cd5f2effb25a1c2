"""This machine, as far as others need to tell it from theirs."""

import os
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """This host in its present life; containers of one host share it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

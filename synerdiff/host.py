"""This machine, as far as others need to tell it from theirs."""

from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """This host in its present life; containers of one host share it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

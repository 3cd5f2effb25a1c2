"""The folder where a local deployment keeps Redis' data and its logs, and the lock that gives it one owner."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class DataDirInUse(RuntimeError):
    """Another deployment runs with this folder."""


def default_data_dir() -> Path:
    """`synerdiff` in the user's state folder ($XDG_STATE_HOME, ~/.local/state)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "synerdiff"


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[Path]:
    """Own `directory` (made if missing; old logs: .1) inside the block. Raises DataDirInUse where another does."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirInUse(
                f"{directory} is in use by another synerdiff; name another folder with --data-dir"
            ) from None
        for log in (directory / "logs").glob("*.log"):
            log.replace(log.with_suffix(".log.1"))
        yield directory

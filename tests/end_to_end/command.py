"""Running the installed `synerdiff` command, and finding every process that came of it."""

import contextlib
import sys
from pathlib import Path

import psutil

SYNERDIFF = str(Path(sys.executable).parent / "synerdiff")


def environment(home: Path) -> dict[str, str]:
    """Variables for a command whose files and processes are to be told from all others: `home` is its own."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home)}


def processes(home: Path) -> dict[int, str]:
    """The processes that run with the environment of `home`: process id -> command line."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                found[process.pid] = " ".join(process.cmdline())
    return found

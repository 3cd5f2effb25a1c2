"""Running the installed `synerdiff` command, and finding every process that came of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from synerdiff.redis_process import redis_url

SYNERDIFF = str(Path(sys.executable).parent / "synerdiff")


def environment(home: Path) -> dict[str, str]:
    """Variables that tell a command's files and processes (`home`) from others, with a proxy where nobody listens."""
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    tree = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), **proxy, **tree}


def processes(home: Path) -> dict[int, str]:
    """The processes that run with the environment of `home`: process id -> command line."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                found[process.pid] = " ".join(process.cmdline())
    return found


@dataclass(frozen=True)
class Up:
    """`synerdiff up` while it serves, seen from outside. `addresses`: of its schedulers."""

    process: "subprocess.Popen[str]"
    home: Path
    addresses: tuple[str, ...]

    @property
    def logs(self) -> Path:
        """The folder that its processes log to."""
        return self.home / "data" / "logs"

    def said(self) -> str:
        """What it has said on stderr so far."""
        return (self.home / "stderr").read_text()

    def pids(self) -> dict[str, int]:
        """The process ids of what it runs, by the names that `up` gives them."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                found[_name(child.cmdline())] = child.pid
        return dict(sorted(found.items()))

    def redis_url(self) -> str:
        """The URL of its Redis."""
        command = psutil.Process(self.pids()["redis"]).cmdline()
        return redis_url(int(re.search(r"(?:--port |:)(\d+)", " ".join(command))[1]))  # type: ignore[index]

    def gateway_url(self) -> str:
        """Where its gateway serves."""
        command = psutil.Process(self.pids()["gateway"]).cmdline()
        return f"http://{command[command.index('--listen') + 1]}"

    def kill(self, *kinds: str) -> dict[str, int]:
        """SIGKILL to the first process of each kind, with nothing in between. Returns them as `pids` does."""
        running = self.pids()
        names = [next(name for name in running if name.startswith(kind)) for kind in kinds]
        for name in names:
            os.kill(running[name], signal.SIGKILL)
        return {name: running[name] for name in names}


@contextlib.contextmanager
def running_up(home: Path, *, schedulers: int, model: str = "", **variables: str) -> Iterator[Up]:
    """Run `synerdiff up` in `home`, and end it at once afterwards. `model`: NAME=PATH, else the bundled one."""
    options = f"--listen 127.0.0.1:0 --data-dir {home}/data --dtype float32 --no-idle-profile --compile off".split()
    options += ["--gateway", "127.0.0.1:0", "--schedulers", str(schedulers)]
    options += ["--model", model] if model else []
    with (home / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [SYNERDIFF, "up", *options],
            env=environment(home) | variables,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        addresses = tuple(process.stdout.readline().strip() for _ in range(schedulers))
        assert all(addresses), (home / "stderr").read_text()
        yield Up(process, home, addresses)
    finally:
        process.kill()
        process.communicate()


def _name(command: list[str]) -> str:
    for flag in ("--instance-id", "--worker-id"):
        if flag in command:
            return command[command.index(flag) + 1]
    if "services.gateway" in command:
        return "gateway"
    return "redis" if "redis-server" in " ".join(command) else f"starting: {command}"

"""How long a scheduler takes from the start of its process to being ready, and what its image's packages weigh.

    python -m bench.scheduler_start [--runs 5] [--fresh]

A real process and a real Redis; ready is what its readiness probe says, asked for every few milliseconds. With --fresh
the scheduler's packages are first installed as its Dockerfile does, into a folder of their own that nothing else is
imported from, and weighed. Prints JSON: seconds of each run, the CPU seconds in them, the median; with --fresh the
megabytes.
"""

import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.command import run
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.rpc import READINESS, open_channel, serving

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / "deploy" / "docker" / "install.sh"
DOCKERFILE = ROOT / "deploy" / "docker" / "scheduler.Dockerfile"
GIVE_UP_S = 60.0


async def start_one(python: Path, folder: Path, redis_url: str) -> tuple[float, float]:
    """Start `python -m services.scheduler` in `folder`, then end it. Returns seconds until ready, and its CPU's."""
    health = f"127.0.0.1:{free_port()}"
    environment = {
        "PATH": os.environ["PATH"],
        "SYNERDIFF_REDIS_URL": redis_url,
        "SYNERDIFF_HEALTH_LISTEN": health,
        "SYNERDIFF_LOG_LEVEL": "error",
        "PYTHONPYCACHEPREFIX": str(python.parents[1] / "pycache") if (python.parents[1] / "pycache").is_dir() else "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-P", "-m", "services.scheduler"), cwd=folder, env=environment
    )
    try:
        async with asyncio.timeout(GIVE_UP_S):
            while not await _ready(health):
                if process.returncode is not None:
                    raise SystemExit(f"the scheduler ended with status {process.returncode}")
                await asyncio.sleep(0.005)
        seconds = time.monotonic() - started
        used = psutil.Process(process.pid).cpu_times()
        return seconds, used.user + used.system
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(health: str) -> bool:
    # A channel of its own for each question: one that failed would wait before it connects again.
    async with open_channel(health) as channel:
        return await serving(channel, READINESS)


def install_fresh(target: Path) -> Path:
    """Run the install steps of the scheduler's Dockerfile into `target`. Returns the interpreter there."""
    text = DOCKERFILE.read_text()
    found = re.search(r'^ARG EXTRAS="(.*)"$', text, re.MULTILINE)
    assert found is not None
    source = target.parent / "source"
    for copied in re.findall(r"^COPY ([^-].*) \S+$", text, re.MULTILINE):
        for path in copied.split():
            _copy(ROOT / path, source / path)
    for line in re.findall(r"^RUN (sh deploy/docker/install.sh .*)$", text, re.MULTILINE):
        command = line.replace("/opt/synerdiff", str(target)).replace("${EXTRAS}", found[1])
        subprocess.run(["sh", "-c", command], cwd=source, check=True, env={**os.environ, "PYTHON": sys.executable})
    return target / "bin" / "python"


def _copy(path: Path, to: Path) -> None:
    """So that what setuptools leaves behind is not left in the working tree."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(path, to)


def megabytes(folder: Path) -> float:
    """The bytes of every file below `folder`, in units of 10**6."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


async def measure(runs: int = 5, fresh: bool = False) -> dict[str, Any]:
    """Measure `runs` starts; `fresh`: install the packages of the image first, and weigh them."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, python = Path(name), Path(sys.executable)
        if fresh:
            python = install_fresh(folder / "installed")
            found["installed_mb"] = round(megabytes(folder / "installed"), 1)
            found["torch"] = any((folder / "installed").rglob("site-packages/torch"))
        redis = RedisProcess(folder / "redis")
        redis.start()
        try:
            starts = [await start_one(python, folder, redis.url) for _ in range(runs)]
        finally:
            redis.stop()
    found["seconds"] = [round(seconds, 2) for seconds, _ in starts]
    found["cpu_s"] = [round(cpu_s, 2) for _, cpu_s in starts]
    found["median_s"] = round(statistics.median(seconds for seconds, _ in starts), 2)
    return found


if __name__ == "__main__":
    run(measure)

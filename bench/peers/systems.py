"""The processes that are measured, theirs and ours: starting them, and whether those that should rest do."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.serving import deployed
from synerdiff import lifeline
from synerdiff.openmp import SPIN_COUNT, WAIT_POLICY
from synerdiff_cli.supervisor import log_tail

_QUIET_CORES = 0.05
_LOOK_EVERY_S = 1.0
_LONGEST_LINE_BYTES = 1 << 20


# A scheduler at rest still looks around ten times a second, which is a twentieth of a core. So it is stopped, but for a
# moment every few seconds: more seldom, its workers would take it for dead after 10 s and its lock would run out.
_DOZE_S = 6.0
_AWAKE_S = 0.3
_LEADER_TTL_S = 60.0


@dataclass(frozen=True)
class System:
    """Processes that serve something. `computing`: those that do the work, with whatever children they have; `others`
    beside them, of which `dozing` are stopped while somebody else is measured."""

    name: str
    computing: tuple[int, ...]
    others: tuple[int, ...] = ()
    dozing: tuple[int, ...] = ()


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of cores that those processes which live, and their children, have used since their start."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = each.cpu_times()
                    total += times.user + times.system
    return total


async def until_quiet(systems: Iterable[System], within_s: float, still_s: float = 2.0) -> bool:
    """Wait until what computes has used hardly any of a core for `still_s`; False: it never did."""
    pids = [pid for system in systems for pid in system.computing]
    give_up_at, still_since = time.monotonic() + within_s, None
    while True:
        before_s, began = cpu_s(pids), time.monotonic()
        await asyncio.sleep(min(_LOOK_EVERY_S, still_s))
        now = time.monotonic()
        quiet = cpu_s(pids) - before_s < _QUIET_CORES * (now - began)
        still_since = (began if still_since is None else still_since) if quiet else None
        if still_since is not None and now - still_since >= still_s:
            return True
        if now > give_up_at:
            return False


@contextlib.asynccontextmanager
async def at_rest(systems: Iterable[System]) -> AsyncIterator[None]:
    """Let what dozes of them doze inside the block; after it all are awake."""
    pids = [pid for system in systems for pid in system.dozing]
    dozing = asyncio.create_task(_doze(pids))
    try:
        yield
    finally:
        dozing.cancel()
        await asyncio.gather(dozing, return_exceptions=True)
        _signal(pids, signal.SIGCONT)


async def _doze(pids: Sequence[int]) -> None:
    while True:
        _signal(pids, signal.SIGSTOP)
        await asyncio.sleep(_DOZE_S)
        _signal(pids, signal.SIGCONT)
        await asyncio.sleep(_AWAKE_S)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass(frozen=True)
class Peer:
    """A running `bench.peers.process`. `about`: what it says of itself."""

    system: System
    about: Mapping[str, Any]
    process: asyncio.subprocess.Process
    log: Path

    async def loop(self, **arguments: Any) -> list[float]:
        """Run its bare loop; seconds of each call. The arguments are those of `Studio.loop`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
        taken: list[float] = await _answer(self.process, self.log)
        return taken


@contextlib.asynccontextmanager
async def peer(name: str, arguments: Sequence[str], cache: Path, log: Path) -> AsyncIterator[Peer]:
    """A process with a pipeline, once it has found its best batch size. Raises RuntimeError where it dies."""
    own = (sys.executable, "-P", "-m", "bench.peers.process", *arguments)
    bound_to_us = (sys.executable, "-I", "-S", str(lifeline.__file__), str(os.getpid()))
    root = str(Path(__file__).parents[2])
    environment = {
        # Threads of OpenMP wait as they do by themselves, which is best for a process that has the machine to itself.
        **{name: value for name, value in os.environ.items() if name not in (WAIT_POLICY, SPIN_COUNT)},
        "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", ""),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *bound_to_us,
            *own,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=environment,
            limit=_LONGEST_LINE_BYTES,
            start_new_session=True,
        )
    try:
        about = await _answer(process, log)
        yield Peer(System(name, (process.pid,)), about, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its compilers as well
        await process.wait()


async def _answer(process: asyncio.subprocess.Process, log: Path) -> Any:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        last_lines = "\n".join(log_tail(log))
        raise RuntimeError(f"the peer's process ended, status {await process.wait()}; the end of {log}:\n{last_lines}")
    return json.loads(line)


@contextlib.asynccontextmanager
async def own_system(
    name: str, settings: Mapping[str, str], profile: Path | None, dtype: str, model: Path
) -> AsyncIterator[tuple[System, str]]:
    """A deployment of ours, and its address."""
    async with deployed({"leader_ttl_s": str(_LEADER_TTL_S)} | dict(settings), profile, dtype, model) as running:
        pids = running.supervisor.pids()
        workers = tuple(pid for child, pid in pids.items() if child.startswith(("unet", "vae")))
        others = tuple(pid for pid in pids.values() if pid not in workers)
        schedulers = tuple(pid for child, pid in pids.items() if child.startswith("scheduler"))
        yield System(name, workers, others, schedulers), running.deployment.addresses[0]

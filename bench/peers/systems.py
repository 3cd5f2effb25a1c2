"""Systems that are compared, and how each is at rest while another is measured."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import psutil

_QUIET_CORES = 0.05
_LOOK_EVERY_S = 1.0
# A scheduler at rest still polls ten times a second, which is a twentieth of a core. So it is stopped, but for a
# moment every few seconds: with longer stops its workers would take it for dead after 10 s and its lock would run out.
_DOZE_S = 6.0
_AWAKE_S = 0.3


@dataclass(frozen=True)
class System:
    """Processes that serve something. `computing`: those that do the work, with whatever children they have; `others`
    beside them, of which `dozing` are stopped while another system is measured."""

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
    """Wait until the computing processes have used hardly any of a core for `still_s`; False: they were never quiet."""
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
    """Stop their `dozing` processes inside the block, but for moments; after it all run."""
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

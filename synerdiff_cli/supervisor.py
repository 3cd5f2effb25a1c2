"""Keeps a set of child processes alive by their commands and probes, and stops all of them when it ends."""

import asyncio
import contextlib
import enum
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from synerdiff import lifeline
from synerdiff.settings import EXIT_BAD_SETTINGS
from synerdiff_cli.console import CommandError

T = TypeVar("T")

TAIL_LINES = 12


class ChildState(enum.Enum):
    """The state of a child."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ChildSpec:
    """How to run one child. `probe` says whether it is ready, and never raises.

    `stage`: children of a lower stage are ready before this one starts, and are stopped after it. `group`: those of one
    group need each other; while there is another group, a child that cannot start stops its own group.
    `awaited`: whether `Supervisor.start` waits for it.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    probe: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)
    stage: int = 0
    group: str = ""
    awaited: bool = True


@dataclass(frozen=True)
class RestartPolicy:
    """When a child that died is started again. A quick death: before it was ready, or within `quick_s` of that."""

    quick_deaths: int = 5
    quick_s: float = 5.0
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    probe_interval_s: float = 0.2
    stop_grace_s: float = 8.0

    def delay_s(self, quick_deaths: int) -> float:
        """How long to wait after so many quick deaths in a row (0: the last one was not quick)."""
        return min(self.first_delay_s * 2.0 ** max(quick_deaths - 1, 0), self.longest_delay_s)


class ChildGaveUp(CommandError):
    """A child keeps dying. The message names its log file and shows the last lines of it."""

    def __init__(self, spec: ChildSpec, status: int, deaths: int) -> None:
        times = f"{deaths} times in a row, the last time" if deaths > 1 else "at its start"
        last_lines = "".join(f"\n  | {line}" for line in log_tail(spec.log))
        super().__init__(f"{spec.name} died {times} with {_describe(status)}; its log is {spec.log}{last_lines}")
        self.name = spec.name


@dataclass
class _Child:
    spec: ChildSpec
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """`async with Supervisor(specs) as supervisor`: the children run inside the block and are gone after it.

    `on_change` gets every change of a child's state, `on_refused` a group that is left out and why. Use `guard`
    to work while the children live.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        policy: RestartPolicy | None = None,
        on_change: Callable[[str, ChildState], None] = lambda name, state: None,
        on_refused: Callable[[str, str], None] = lambda group, reason: None,
    ) -> None:
        self.left_out: set[str] = set()
        self._on_refused = on_refused
        self._leaving: set[asyncio.Task[None]] = set()
        self._children = [_Child(spec) for spec in sorted(specs, key=lambda spec: spec.stage)]
        self._policy = policy or RestartPolicy()
        self._on_change = on_change
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all, stage by stage; returns when each awaited one is ready. ChildGaveUp when one keeps dying."""
        for stage in sorted({child.spec.stage for child in self._children}):
            children = self._stage(stage)
            for child in children:
                child.keeper = asyncio.create_task(self._keep(child), name=child.spec.name)
            await self.guard(_all_ready([child for child in children if child.spec.awaited]))

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end; cancel it and raise ChildGaveUp as soon as a child has to be given up."""
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._given_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._given_up.result()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self) -> None:
        """SIGTERM to all, the highest stage first; SIGKILL after the grace, or at once when cancelled."""
        self._given_up.cancel()
        for leaving in self._leaving:
            leaving.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        try:
            for stage in sorted({child.spec.stage for child in self._children}, reverse=True):
                await asyncio.gather(*(self._stop_child(child) for child in self._stage(stage)))
        finally:
            for child in self._children:
                _signal(child.process, signal.SIGKILL)

    async def until_ready(self, name: str) -> None:
        """Return once the child of that name is ready."""
        await _all_ready([child for child in self._children if child.spec.name == name])

    def pids(self) -> dict[str, int]:
        """The process ids of the children that run, by name."""
        return {c.spec.name: c.process.pid for c in self._children if c.process and c.process.returncode is None}

    def _stage(self, stage: int) -> list[_Child]:
        return [child for child in self._children if child.spec.stage == stage]

    async def _keep(self, child: _Child) -> None:
        """Run a child, and again whenever it ends, until it is cancelled or has to be given up."""
        quick_deaths = 0
        while True:
            self._on_change(child.spec.name, ChildState.STARTING)
            child.process = await _spawn(child.spec)
            lived_s, status = await self._live(child, child.process)
            quick_deaths = quick_deaths + 1 if lived_s < self._policy.quick_s else 0
            if status == EXIT_BAD_SETTINGS and self._others_go_on(child.spec.group):
                self._leave_out(child)
                return
            if status == EXIT_BAD_SETTINGS or quick_deaths >= self._policy.quick_deaths:
                if not self._given_up.done():
                    self._given_up.set_exception(ChildGaveUp(child.spec, status, max(quick_deaths, 1)))
                return
            self._on_change(child.spec.name, ChildState.RESTARTING)
            await asyncio.sleep(self._policy.delay_s(quick_deaths))

    def _others_go_on(self, group: str) -> bool:
        groups = {child.spec.group for child in self._children} - self.left_out - {group, ""}
        return bool(group and groups)

    def _leave_out(self, refused: _Child) -> None:
        """Stop the others of the group of a child that cannot start; the start does not wait for them any more."""
        group = refused.spec.group
        self.left_out.add(group)
        self._on_refused(group, refusal(refused.spec.log))
        self._on_change(refused.spec.name, ChildState.STOPPED)
        refused.ready.set()
        for child in self._children:
            if child.spec.group == group and child is not refused:
                self._leaving.add(asyncio.create_task(self._stop_for_good(child)))

    async def _stop_for_good(self, child: _Child) -> None:
        await self._stop_child(child)
        child.ready.set()

    async def _live(self, child: _Child, process: asyncio.subprocess.Process) -> tuple[float, int]:
        """Wait for the end of one process: the seconds for which it was ready, and its exit status."""
        watch = asyncio.create_task(self._watch_ready(child))
        try:
            status = await process.wait()
        finally:
            watch.cancel()
            child.ready.clear()
        ready_at = (await asyncio.gather(watch, return_exceptions=True))[0]
        return (time.monotonic() - ready_at if isinstance(ready_at, float) else 0.0), status

    async def _watch_ready(self, child: _Child) -> float:
        ready = False
        while not ready:
            await asyncio.sleep(self._policy.probe_interval_s)
            ready = await child.spec.probe()
        child.ready.set()
        self._on_change(child.spec.name, ChildState.READY)
        return time.monotonic()

    async def _stop_child(self, child: _Child) -> None:
        if child.keeper is not None:
            child.keeper.cancel()
            await asyncio.gather(child.keeper, return_exceptions=True)
        process = child.process
        if process is None:
            return
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._policy.stop_grace_s)
        _signal(process, signal.SIGKILL)
        await process.wait()
        self._on_change(child.spec.name, ChildState.STOPPED)


def log_tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log file; none when there is no such file."""
    try:
        text = path.read_bytes()[-64 * 1024 :].decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def refusal(log: Path) -> str:
    """The reason that a service gave for its end: that of its last log line that has one, else its last line."""
    lines = log_tail(log)
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return str(json.loads(line)["reason"])
    return lines[-1] if lines else f"it ended; its log is {log}"


async def _all_ready(children: Sequence[_Child]) -> None:
    await asyncio.gather(*(child.ready.wait() for child in children))


async def _spawn(spec: ChildSpec) -> asyncio.subprocess.Process:
    """Start a child in a session of its own, so that Ctrl-C reaches the supervisor alone; output goes to its log."""
    bound_to_us = (sys.executable, "-I", "-S", str(lifeline.__file__), str(os.getpid()))
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    with spec.log.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *bound_to_us,
            *spec.command,
            env={**os.environ, **spec.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _signal(process: asyncio.subprocess.Process | None, number: signal.Signals) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def _describe(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

"""The rounds of `synerdiff bench`: every server in turn, and the scheduler's account of each window."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synerdiff.client.load.arrivals import bursts, from_file, poisson
from synerdiff.client.load.requests import Drawn, LoadRequest, Mix, prompts_of_lines, prompts_of_words
from synerdiff.client.load.sending import Answer, ClosedLoop, Load, OpenLoop, Window, in_turns, send
from synerdiff.client.load.trace import thresholds, trace_events, unet_rows
from synerdiff.errors import FieldViolation, InvalidRequest, SynerDiffError
from synerdiff_cli.deployment import BUNDLED_MODEL
from synerdiff_cli.server import Server, connected

_WARM_UP_SEED = 2**32
_DEFAULT_CONCURRENCY = 8
_DEFAULT_REQUESTS = 100
_BUILT_IN_WORDS = BUNDLED_MODEL.parent / "core.txt"


@dataclass(frozen=True)
class Target:
    """A server and its name in tables."""

    name: str
    server: Server


@dataclass(frozen=True)
class Measured:
    """One window of one server. `unet_rows`, `thresholds`: of its trace, if any: (s from the start, value)."""

    window: Window
    unet_rows: tuple[tuple[float, float], ...] = ()
    thresholds: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Plan:
    """The plan of a run. `load` gives the load of a round; `traced`: ask for traces as well."""

    targets: tuple[Target, ...]
    rounds: int
    warm_up: int
    mix: Mix
    load: Callable[[int], Load]
    traced: bool


class Listener:
    """Gets the progress of a run; this base class does nothing."""

    def begins(self, target: Target, number: int, load: Load) -> None:
        """A window begins; round -1: warming up."""

    def answered(self, answer: Answer) -> None:
        """A request of it has ended."""

    def ended(self, target: Target, number: int, window: Window) -> None:
        """The window is over."""


async def run_bench(plan: Plan, listener: Listener) -> dict[str, list[Measured]]:
    """Every window by server, in order of rounds. Raises Unavailable where a server is not there at the start."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {target: await stack.enter_async_context(connected(target.server)) for target in plan.targets}

        async def window(target: Target, number: int) -> Measured:
            load = plan.load(number)
            listener.begins(target, number, load)
            sent = await send(clients[target], load, on_answer=listener.answered)
            listener.ended(target, number, sent)
            return await _with_trace(target, sent) if plan.traced else Measured(sent)

        for target in plan.targets if plan.warm_up else ():
            warming = ClosedLoop(Drawn(plan.mix, _WARM_UP_SEED, plan.warm_up), plan.warm_up)
            listener.begins(target, -1, warming)
            await send(clients[target], warming, on_answer=listener.answered)
        rounds = await in_turns(plan.targets, plan.rounds, window)
    return {target.name: [done[target] for done in rounds] for target in plan.targets}


async def _with_trace(target: Target, window: Window) -> Measured:
    """A window with its trace, or without one where the server gives none."""
    since_s = window.began_unix_s
    try:
        async with target.server.channel() as channel:
            events = await trace_events(channel, since_s, target.server.metadata)
    except (TimeoutError, SynerDiffError):
        return Measured(window)
    return Measured(window, unet_rows(events, since_s), thresholds(events, since_s))


@dataclass(frozen=True)
class Shape:
    """How requests come: from so many clients, at a rate, in bursts, or at the times of a file; one of them, or none
    for the default. `requests`, `seconds`: when a round ends. Raises InvalidRequest for excluding options."""

    concurrency: int | None = None
    rate: float | None = None
    burst: int | None = None
    every_s: float | None = None
    times: Path | None = None
    requests: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        ways = {"concurrency": self.concurrency, "rate": self.rate, "burst": self.burst, "times": self.times}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise _refused(given[0], f"there is also --{given[1]}; give one of --{', --'.join(ways)}")
        if self.every_s is not None and (self.burst is None or self.seconds is None):
            raise _refused("every-s", "needs --burst and --seconds")
        if self.requests is not None and (self.burst is not None or self.times is not None):
            raise _refused("requests", "is of no use with --burst and --times, which say how many there are")
        if self.seconds is not None and (self.times is not None or (self.burst is not None and self.every_s is None)):
            raise _refused("seconds", "is of no use with --times, nor with --burst without --every-s")

    def load(self, mix: Mix, seed: int) -> Load:
        """One round. Raises OSError, InvalidRequest."""
        number = self.requests if self.requests is not None or self.seconds is not None else _DEFAULT_REQUESTS
        if self.rate is not None:
            return OpenLoop(poisson(self.rate, mix, seed, seconds=self.seconds or math.inf, number=number))
        if self.burst is not None:
            times = math.ceil((self.seconds or 0) / self.every_s) if self.every_s else 1
            return OpenLoop(bursts(self.burst, mix, seed, every_s=self.every_s or 0.0, times=times))
        if self.times is not None:
            return OpenLoop(from_file(self.times, mix, seed))
        return ClosedLoop(Drawn(mix, seed, number), self.concurrency or _DEFAULT_CONCURRENCY, self.seconds)


def requests_of(load: Load) -> int | None:
    """How many requests a load has; None where its seconds decide."""
    if isinstance(load, OpenLoop):
        return len(load.arrivals)
    return load.requests.number if isinstance(load.requests, Drawn) else None


def mix_of(like: LoadRequest, prompts: Path | None, num_prompts: int | None) -> Mix:
    """Requests like `like`, with `num_prompts` of a file or the bundled model. Raises OSError, InvalidRequest."""
    if prompts is None and not _BUILT_IN_WORDS.exists():
        raise _refused("prompts", f"needed: {_BUILT_IN_WORDS}, which comes with the code, is not there")
    listed = prompts_of_words(_BUILT_IN_WORDS) if prompts is None else prompts_of_lines(prompts)
    return Mix(listed[:num_prompts], like)


def _refused(option: str, description: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(f"--{option}", description))

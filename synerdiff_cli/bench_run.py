"""The rounds of `synerdiff bench`: every server in turn, and the scheduler's account of each window."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import Drawn, Mix
from synerdiff.client.load.rounds import in_turns
from synerdiff.client.load.sending import Answer, ClosedLoop, Load, Window, send
from synerdiff.client.load.trace import thresholds, trace_events, unet_rows
from synerdiff.errors import SynerDiffError
from synerdiff_cli.server import Server, connected

_WARM_UP_SEED = 2**32


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
    """Hears how far a run is; the plain one does nothing."""

    def begins(self, target: Target, number: int, load: Load) -> None:
        """A window begins; round -1: warming up."""

    def answered(self, answer: Answer) -> None:
        """A request of it has ended."""

    def ended(self, target: Target, number: int, window: Window) -> None:
        """The window is over."""


async def run_bench(plan: Plan, listener: Listener) -> dict[str, list[Measured]]:
    """Every window by server, in order of rounds. Raises Unavailable where a server is not there at the start."""
    async with _clients(plan.targets) as clients:

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


@contextlib.asynccontextmanager
async def _clients(targets: Sequence[Target]) -> AsyncIterator[Mapping[Target, AsyncClient]]:
    async with contextlib.AsyncExitStack() as stack:
        yield {target: await stack.enter_async_context(connected(target.server)) for target in targets}


async def _with_trace(target: Target, window: Window) -> Measured:
    """A window with its trace; a server that keeps none, or does not lead, is no reason to lose the window."""
    since_s = window.began_unix_s
    try:
        async with target.server.channel() as channel:
            events = await trace_events(channel, since_s, target.server.metadata)
    except (TimeoutError, SynerDiffError):
        return Measured(window)
    return Measured(window, unet_rows(events, since_s), thresholds(events, since_s))

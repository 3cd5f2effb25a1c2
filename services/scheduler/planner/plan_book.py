"""The planner's memory, and the process that fills it.

A round depends on the profile and the query alone, so a leader that comes back to the same counts, as it does at nearly
every tick, finds its plan in the `PlanBook`. `ColdPlans` has missing plans made in a process of their own, so that
planning delays no tick; until then the leader uses a simpler round.

    python -m services.scheduler.planner.plan_book

The process answers over its pipes, a JSON object a line, at low priority: a plan for later is worth something, but
less than the picture under way. It ends when its stdin does, so it never outlives the scheduler, and is started anew
when it dies by itself. It is not a pool of concurrent.futures: such a process outlives a scheduler that is killed,
cannot be killed by public means while it hangs (before Python 3.14), and is asked in pickles.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import BinaryIO, TypeVar

from services.scheduler.planner.planned_round import PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.errors import InvalidRequest
from synerdiff.json_codec import JsonCodec
from synerdiff.profiles import Profile, dump, parse
from synerdiff.telemetry import get_logger

log = get_logger("plans")

PROFILES_KEPT = 16
MOST_WAITING = 256
MOST_UNSOLVABLE = 4096
TRIES = 2
TIMEOUT_S = 60.0
_CELLS_PER_UNIT = 50  # a threshold cell of 0.02
_ROUNDING = 1e-6
_NICENESS = 10
_LINE_LIMIT_BYTES = 1 << 20
_RESTART_PAUSE_S = 0.5
_AS_WE_WERE_STARTED = ("-P",) if sys.flags.safe_path else ()
_COMMAND = (sys.executable, *_AS_WE_WERE_STARTED, "-m", "services.scheduler.planner.plan_book")

_Key = tuple[str, PlanQuery]
_T = TypeVar("_T")

_text, _profile = lru_cache(PROFILES_KEPT)(dump), lru_cache(PROFILES_KEPT)(parse)


def snapped(threshold: float) -> float:
    """The threshold's place on the grid of 0.02, the next one up: a plan made for it keeps to `threshold` too."""
    return ceil(threshold * _CELLS_PER_UNIT - _ROUNDING) / _CELLS_PER_UNIT


class PlanBook:
    """Planned rounds by profile digest and query, with the threshold on its grid; the least used are dropped first."""

    def __init__(self, capacity: int = 8192, solve_now: bool = False) -> None:
        self._rounds: OrderedDict[_Key, PlannedRound] = OrderedDict()
        self.missing: OrderedDict[_Key, Profile] = OrderedDict()
        self._capacity = capacity
        self._solve_now = solve_now

    def __len__(self) -> int:
        return len(self._rounds)

    def lookup(self, profile: Profile, query: PlanQuery) -> PlannedRound | None:
        """The plan for `query`. An unknown plan is None and remembered as missing; with `solve_now` it is made at once,
        which raises as `plan_round` does."""
        query = query._replace(threshold=snapped(query.threshold))
        key = profile.digest, query
        known = self._rounds.get(key)
        if known is not None:
            self._rounds.move_to_end(key)
            return known
        if self._solve_now:
            self.add(profile.digest, query, plan_round(profile, query))
            return self._rounds[key]
        self._remember(self.missing, key, profile)
        return None

    def add(self, digest: str, query: PlanQuery, planned: PlannedRound) -> None:
        """Remember a round that was planned for a missing query, as `take_missing` gave it."""
        self.missing.pop((digest, query), None)
        self._remember(self._rounds, (digest, query), planned)

    def take_missing(self) -> list[tuple[Profile, PlanQuery]]:
        """The queries without a plan since the last call, oldest first, with snapped thresholds."""
        missing, self.missing = self.missing, OrderedDict()
        return [(profile, query) for (_, query), profile in missing.items()]

    def queries(self, digest: str) -> list[PlanQuery]:
        """The queries with a plan by a profile, the least used first."""
        return [query for of, query in self._rounds if of == digest]

    def _remember(self, memory: "OrderedDict[_Key, _T]", key: _Key, value: _T) -> None:
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > self._capacity:
            memory.popitem(last=False)


@dataclass(frozen=True)
class Question:
    """Which round to plan, by which profile, as `synerdiff.profiles.dump` writes it."""

    query: PlanQuery
    profile: str


@dataclass(frozen=True)
class Answer:
    """The plan, or why there is none."""

    planned: PlannedRound | None = None
    problem: str = ""


QUESTIONS, ANSWERS = JsonCodec(Question, "question"), JsonCodec(Answer, "answer")


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer every question until there are no more."""
    for line in questions:
        answers.write(ANSWERS.dump(_answer(line)) + b"\n")
        answers.flush()


def _answer(line: bytes) -> Answer:
    try:
        question = QUESTIONS.parse(line)
        return Answer(plan_round(_profile(question.profile), question.query))
    except (InvalidRequest, ValueError, LookupError, MemoryError) as error:
        return Answer(problem=f"{type(error).__name__}: {error}")


class ColdPlans:
    """Solves submitted queries, the newest first, and passes every plan to `on_plan(profile digest, query, plan)`.
    `run` does the work. A query without a plan, or one that the process fails at twice, is not tried again."""

    def __init__(
        self, on_plan: Callable[[str, PlanQuery, PlannedRound], None], command: tuple[str, ...] = _COMMAND
    ) -> None:
        self._on_plan = on_plan
        self._waiting: OrderedDict[_Key, Profile] = OrderedDict()
        self._under_way: _Key | None = None
        self._unsolvable: OrderedDict[_Key, None] = OrderedDict()
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._solver = _Solver(command)

    def submit(self, profile: Profile, queries: Iterable[PlanQuery]) -> None:
        """Ask for the plans of these queries, unless that was done before; never waits."""
        for query in queries:
            key = profile.digest, query
            if key != self._under_way and key not in self._unsolvable:
                self._waiting[key] = profile
                self._waiting.move_to_end(key)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)
        if self._waiting:
            self._settled.clear()
            self._wanted.set()

    async def settled(self) -> None:
        """Wait until all that was submitted has been solved or given up."""
        await self._settled.wait()

    async def run(self) -> None:
        """Solve until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                while self._waiting:
                    self._under_way, profile = self._waiting.popitem()
                    await self._settle(profile, self._under_way)
                    self._under_way = None
                self._wanted.clear()
                self._settled.set()
        finally:
            await self._solver.end()

    async def _settle(self, profile: Profile, key: _Key) -> None:
        for _ in range(TRIES):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    answer = await self._solver.ask(profile, key[1])
            except (OSError, ValueError, EOFError, TimeoutError, InvalidRequest) as error:
                log.warning("the planning process is gone", error=repr(error), query=key[1]._asdict())
                await self._solver.end()
                await asyncio.sleep(_RESTART_PAUSE_S)
                continue
            if answer.planned:
                self._on_plan(*key, answer.planned)
                return
            log.warning("a round cannot be planned", problem=answer.problem, query=key[1]._asdict())
            break
        self._unsolvable[key] = None
        if len(self._unsolvable) > MOST_UNSOLVABLE:
            self._unsolvable.popitem(last=False)


class _Solver:
    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._process: Process | None = None

    async def ask(self, profile: Profile, query: PlanQuery) -> Answer:
        """Its answer. Raises OSError, EOFError, ValueError or InvalidRequest when it gives none."""
        process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        text = await asyncio.to_thread(_text, profile)
        process.stdin.write(QUESTIONS.dump(Question(query, text)) + b"\n")
        await process.stdin.drain()
        answer = await process.stdout.readline()
        if not answer:
            raise EOFError("it ended")
        return ANSWERS.parse(answer)

    async def end(self) -> None:
        """Kill the process if it runs."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _start(self) -> Process:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, env=environment, limit=_LINE_LIMIT_BYTES
        )
        return self._process


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the scheduler says when to end
    os.nice(_NICENESS)
    serve(sys.stdin.buffer, sys.stdout.buffer)

"""Plans that nobody has yet, made in a process of their own, so that none of them delays a tick.

The process is asked over its pipes, in JSON; it dies with this one and is started anew when it dies by itself. It is
none of concurrent.futures' pool, whose process outlives a scheduler that is killed, cannot be killed by public means
while it hangs (before Python 3.14), imports all of a scheduler, and is asked in pickles, which nothing here is.

The process that plans what takes long: questions on stdin, answers on stdout, a JSON object a line.

    python -m services.scheduler.planner.cold_plans

Started and asked by `cold_plans`, at low priority: a plan for later is worth less than the picture under way, but not
nothing. It ends when its stdin does, so it never outlives the scheduler, however that ends.
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
from typing import BinaryIO

from services.scheduler.planner.planned_round import PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.errors import InvalidRequest
from synerdiff.json_codec import JsonCodec
from synerdiff.profiles import Profile, dump, parse
from synerdiff.telemetry import get_logger

PROFILES_KEPT = 16

_NICENESS = 10


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

_profile = lru_cache(PROFILES_KEPT)(parse)


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


log = get_logger("plans")

MOST_WAITING = 256
MOST_UNSOLVABLE = 4096
TRIES = 2
TIMEOUT_S = 60.0
_LINE_LIMIT_BYTES = 1 << 20
_RESTART_PAUSE_S = 0.5
_AS_WE_WERE_STARTED = ("-P",) if sys.flags.safe_path else ()
_COMMAND = (sys.executable, *_AS_WE_WERE_STARTED, "-m", "services.scheduler.planner.cold_plans")

_Key = tuple[str, PlanQuery]

_text = lru_cache(PROFILES_KEPT)(dump)


class ColdPlans:
    """Solves what is submitted, the newest first, and hands every plan to `on_plan(profile digest, query, plan)`.

    `run` does the work; `submit` only takes note. What has no plan, or kills the process twice, is not tried again.
    """

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

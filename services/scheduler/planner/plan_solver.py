"""The process that plans what takes long: questions on stdin, answers on stdout, a JSON object a line.

    python -m services.scheduler.planner.plan_solver

Started and asked by `cold_plans`, at low priority: a plan for later is worth less than the picture under way, but not
nothing. It ends when its stdin does, so it never outlives the scheduler, however that ends.
"""

import os
import signal
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from services.scheduler.planner.planned_round import PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.errors import InvalidRequest
from synerdiff.json_codec import JsonCodec
from synerdiff.profiles import parse

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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the scheduler says when to end
    os.nice(_NICENESS)
    serve(sys.stdin.buffer, sys.stdout.buffer)

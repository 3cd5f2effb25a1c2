"""The process that plans what takes long: questions on stdin, answers on stdout, a JSON object a line.

    python -m services.scheduler.planner.plan_solver

Started and asked by `cold_plans`, at low priority: a plan for later is worth less than the picture under way, but not
nothing. It ends when its stdin does, so it never outlives the scheduler, however that ends. A question names its
profile by digest and carries the profile itself the first time; `forget` drops the profiles sent before.
"""

import json
import os
import signal
import sys
from typing import Any, BinaryIO

from services.scheduler.planner.planned_round import PlannedItem, PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import Profile, Setting, parse

_NICENESS = 10


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer every question until there are no more."""
    profiles: dict[str, Profile] = {}
    for line in questions:
        answers.write(json.dumps(_answer(profiles, json.loads(line))).encode() + b"\n")
        answers.flush()


def question(digest: str, query: PlanQuery, profile_json: str | None, forget: bool) -> bytes:
    """One line for the solver; `profile_json` as `synerdiff.profiles.dump` writes it, None if it was sent before."""
    fields = {"forget": forget, "digest": digest, "profile": profile_json, "query": list(query)}
    return json.dumps(fields).encode() + b"\n"


def planned_round(answer: bytes) -> PlannedRound | str:
    """The plan in an answer, or why there is none. Raises ValueError for what is no answer."""
    fields: dict[str, Any] = json.loads(answer)
    if "problem" in fields:
        return str(fields["problem"])
    items = tuple(PlannedItem(*item)._replace(setting=Setting(*item[-1])) for item in fields.pop("items"))
    return PlannedRound(items=items, **fields)


def _answer(profiles: dict[str, Profile], fields: dict[str, Any]) -> dict[str, Any]:
    if fields["forget"]:
        profiles.clear()
    try:
        if fields["profile"] is not None:
            profiles[fields["digest"]] = parse(fields["profile"])
        return vars(plan_round(profiles[fields["digest"]], PlanQuery(*fields["query"])))
    except (InvalidRequest, ValueError, LookupError, MemoryError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the scheduler says when to end
    os.nice(_NICENESS)
    serve(sys.stdin.buffer, sys.stdout.buffer)

"""The Lua scripts: loaded once, sent by hash, and their error replies as exceptions.

Every script gets the key names of `keys.py` and the state table of `synerdiff.jobs` in front, so that each stands in
one place; scripts under lua/leader/ get the fencing check as well, those that add to the queue the means to restore it.
A Redis that has lost them is sent them again.
"""

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.scheduler.callers import COUNTS
from services.scheduler.store import keys
from synerdiff.errors import StaleLeader
from synerdiff.jobs import TRANSITIONS
from synerdiff.redis_client import once, patiently, trouble

Argument = str | bytes | int


@dataclass(frozen=True)
class Lease:
    """The right to plan a pool. A newer token given out for the pool makes it void."""

    pool: str
    token: int


class TransitionRefused(RuntimeError):
    """A change that the state table does not have: a mistake of the calling code, never of a client."""


def _tables() -> str:
    """The tables that every script is given, as JSON in a long bracket."""
    tables = {
        "PATTERNS": keys.PATTERNS,
        "TRANSITIONS": {
            state.name: {after.name: True for after in sorted(then)} for state, then in TRANSITIONS.items()
        },
        "PRIORITIES": keys.PRIORITIES,
        "COUNTS": COUNTS,
    }
    decoded = "".join(f"local {name} = cjson.decode([=[{json.dumps(table)}]=])\n" for name, table in tables.items())
    return decoded + f"local GROUP, KEEPER = '{keys.GROUP}', '{keys.KEEPER}'\n"


def _named(folder: Traversable) -> dict[str, str]:
    return {
        entry.name.removesuffix(".lua"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }


@functools.cache
def script_sources() -> dict[str, str]:
    """Every script by name, complete as Redis gets it. Leader scripts are named "leader/<name>"."""
    folder = files("services.scheduler.store").joinpath("lua")
    plain, leader = _named(folder), _named(folder.joinpath("leader"))
    common = _tables() + plain.pop("common") + plain.pop("fair")
    fenced, restoring = common + plain.pop("leader"), plain.pop("restoring")
    for name in ("accept", "restore"):
        plain[name] = restoring + plain[name]
    return {name: common + body for name, body in plain.items()} | {
        f"leader/{name}": fenced + body for name, body in leader.items()
    }


class Scripts:
    """The scripts on one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._registered = {name: redis.register_script(source) for name, source in script_sources().items()}

    async def run(self, name: str, *args: Argument, patience_s: float = 0.0) -> Any:
        """Run a script that anyone may run; for `patience_s` seconds, 0: once. Raises Unavailable, ResponseError."""
        script = self._registered[name]
        if patience_s:
            return await patiently(lambda: script(args=args), patience_s)
        return await once(script(args=args))

    async def run_for_each(self, name: str, *args: Argument, patience_s: float) -> list[Any]:
        """Run a script that answers each of several for itself: a ResponseError is the reply to one that is refused.
        Trouble of Redis itself is no such reply: the whole is tried again. Raises as `run`."""
        script = self._registered[name]

        async def attempt() -> list[Any]:
            replies: list[Any] = await script(args=args)
            for reply in replies:
                if isinstance(reply, ResponseError) and trouble(reply):
                    raise reply
            return replies

        return await patiently(attempt, patience_s)

    async def run_as_leader(self, name: str, lease: Lease, *args: Argument) -> Any:
        """Run a script of lua/leader/. Raises StaleLeader, TransitionRefused, Unavailable, ResponseError."""
        try:
            return await self.run(f"leader/{name}", lease.pool, lease.token, *args)
        except ResponseError as error:
            if str(error).startswith("STALELEADER"):
                message = f"pool {lease.pool!r} has a newer leader than token {lease.token}"
                raise StaleLeader(message) from error
            if str(error).startswith("REFUSED"):
                raise TransitionRefused(str(error).removeprefix("REFUSED ")) from error
            raise

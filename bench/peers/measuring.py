"""The rounds: every load on every contender in turn, all others at rest."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.peers.contenders import LOOP, ONE, OURS, Contender
from bench.peers.loads import ALONE, POISSON, SATURATED, Amounts, load_of
from bench.peers.systems import at_rest, cpu_s, until_quiet
from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import Drawn, Mix
from synerdiff.client.load.sending import ClosedLoop, Window, order_of_round, send
from synerdiff.client.load.summary import percentile, summarise

Say = Callable[[str], None]

_REST_S = 0.5
_REST_WITHIN_S = 60.0
_PATIENCE_S = 60.0
_LOOP_PROMPTS = 64


@dataclass(frozen=True)
class Course:
    """What is measured. `mix`: what every request asks for, but for skipping."""

    loads: Sequence[str]
    amounts: Amounts
    mix: Mix
    seed: int
    warm_up_s: float
    settle_s: float


class Field:
    """The contenders with a connection to each."""

    def __init__(self, contenders: Sequence[Contender], clients: Mapping[str, AsyncClient], course: Course) -> None:
        self._contenders = contenders
        self._clients = clients
        self._course = course
        self._systems = {contender.system.name: contender.system for contender in contenders}

    async def warm_up(self, say: Say) -> None:
        """Let everybody work for a while, then do in the background what they do: nothing of that is measured."""
        course = self._course
        for contender in self._contenders:
            if contender.kind != LOOP:
                clients = 1 if contender.kind == ONE else course.amounts.clients
                load = ClosedLoop(Drawn(self._mix(contender), 0), clients, course.warm_up_s)
                window = await send(self._clients[contender.name], load)
                say(f"warming up, {contender.name}: {window.images_per_s:.2f} images/s")
                if not await until_quiet([contender.system], course.settle_s):
                    say(f"{contender.name} goes on working after {course.settle_s:g} s without requests")

    async def round(self, number: int, say: Say) -> dict[str, Any]:
        """Every load, in order, on every contender, another one first each time."""
        capacities: dict[str, float] = {}
        loads: dict[str, Any] = {}
        for place, name in enumerate(self._course.loads):
            rate_per_s = self._rate_per_s(name, capacities)
            results: dict[str, Any] = {}
            for contender in order_of_round(self._contenders, number + place):
                if contender.kind == LOOP and name not in (SATURATED, ALONE):
                    continue
                # A queue that only grows would be measured for as long as it is let grow.
                if capacities.get(contender.name, rate_per_s) < rate_per_s:
                    continue
                results[contender.name] = found = await self._window(contender, name, number, rate_per_s)
                if name == SATURATED:
                    capacities[contender.name] = found["images_per_s"]
                say(f"round {number + 1}, {name}, {contender.name}: {_line(found)}")
            loads[name] = {"rate_per_s": rate_per_s, "results": results}
        return {"loads": loads}

    def _rate_per_s(self, name: str, capacities: Mapping[str, float]) -> float:
        """A share of what the best baseline served in the same round, saturated."""
        if name not in POISSON:
            return 0.0
        return POISSON[name] * max(capacities[each.name] for each in self._contenders if each.is_baseline)

    async def _window(self, contender: Contender, name: str, number: int, rate_per_s: float) -> dict[str, Any]:
        others = [system for system in self._systems.values() if system != contender.system]
        pids = [pid for system in others for pid in (*system.computing, *system.others)]
        await until_quiet(self._systems.values(), _REST_WITHIN_S, _REST_S)
        async with at_rest(others):
            before_s, began = cpu_s(pids), time.monotonic()
            found = await self._sent(contender, name, number, rate_per_s)
            used = (cpu_s(pids) - before_s) / (time.monotonic() - began)
        return found | {"cores_of_others": round(used, 4)}

    async def _sent(self, contender: Contender, name: str, number: int, rate_per_s: float) -> dict[str, Any]:
        if contender.kind == LOOP:
            return await self._loop(contender, name)
        mix, seed = self._mix(contender), self._course.seed + number
        one = contender.kind == ONE
        load = load_of(name, self._course.amounts, mix, seed, rate_per_s=rate_per_s, one=one)
        return numbers(await send(self._clients[contender.name], load))

    async def _loop(self, contender: Contender, name: str) -> dict[str, Any]:
        assert contender.peer is not None
        like, amounts = self._course.mix.like, self._course.amounts
        best = contender.peer.about["best_size"]
        # As many pictures as throughput is taken over where there are clients: all but their first and last turns.
        size, calls = (1, amounts.alone) if name == ALONE else (best, (amounts.turns - 2) * amounts.clients // best)
        prompts = [request.prompt for request in Drawn(self._course.mix, self._course.seed, _LOOP_PROMPTS)]
        taken = await contender.peer.loop(
            size=size,
            calls=max(2, calls),
            prompts=prompts,
            num_inference_steps=like.num_inference_steps,
            guidance_scale=like.guidance_scale,
        )
        return {
            "images": size * len(taken),
            "images_per_s": size * len(taken) / sum(taken),
            "seconds": sum(taken),
            "latencies_s": [round(each, 4) for each in taken],
            "mean_s": sum(taken) / len(taken),
            "p50_s": percentile(taken, 50),
            "p99_s": percentile(taken, 99),
            "errors": {},
            "skipped_share": 0.0,
            "late_s": 0.0,
        }

    def _mix(self, contender: Contender) -> Mix:
        """Peers skip nothing, whatever they are asked."""
        like = replace(self._course.mix.like, skip_cfg=contender.skip_cfg if contender.kind == OURS else None)
        return replace(self._course.mix, like=like)


def numbers(window: Window) -> dict[str, Any]:
    summary = summarise([window])
    return {
        "images": summary.images,
        "images_per_s": summary.images_per_s,
        "seconds": window.seconds,
        "latencies_s": [round(answer.latency_s, 4) for answer in window.served],
        "mean_s": summary.mean_s,
        "p50_s": summary.p50_s,
        "p99_s": summary.p99_s,
        "errors": dict(summary.errors),
        "skipped_share": summary.skipped_share,
        "late_s": summary.late_s,
    }


@contextlib.asynccontextmanager
async def field(contenders: Sequence[Contender], course: Course) -> AsyncIterator[Field]:
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            each.name: await stack.enter_async_context(AsyncClient(each.address, patience_s=_PATIENCE_S))
            for each in contenders
            if each.address
        }
        yield Field(contenders, clients, course)


def _line(found: Mapping[str, Any]) -> str:
    failed = f", failed: {found['errors']}" if found["errors"] else ""
    return (
        f"{found['images_per_s']:.2f} images/s, mean {found['mean_s']:.2f} s, P99 {found['p99_s']:.2f} s, "
        f"others {found['cores_of_others']:.1%} of a core{failed}"
    )

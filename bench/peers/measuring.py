"""The contenders, their common loads, and the rounds: each load on each contender in turn, others at rest."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.command import flags, say
from bench.peers.systems import System, at_rest, cpu_s, until_quiet
from bench.serving import deployed
from synerdiff import lifeline
from synerdiff.client import AsyncClient
from synerdiff.client.load.arrivals import bursts, poisson
from synerdiff.client.load.requests import Drawn, Mix
from synerdiff.client.load.sending import Answer, ClosedLoop, Load, OpenLoop, Window, order_of_round, send
from synerdiff.client.load.summary import summarise
from synerdiff.openmp import SPIN_COUNT, WAIT_POLICY
from synerdiff_cli.supervisor import log_tail

_LONGEST_LINE_BYTES = 1 << 20


_LEADER_TTL_S = 60.0


@dataclass(frozen=True)
class Peer:
    """A running `bench.peers.process`. `about`: its description of itself."""

    system: System
    about: Mapping[str, Any]
    process: asyncio.subprocess.Process
    log: Path

    async def loop(self, size: int, calls: int, **asked: Any) -> Window:
        """Its bare loop of so many calls of `size` pictures each, an answer a call. `asked`: more for `Studio.loop`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"size": size, "calls": calls, **asked}).encode() + b"\n")
        ends = itertools.accumulate(await _answer(self.process, self.log), initial=0.0)
        calls_s = enumerate(itertools.pairwise(ends))
        return Window(tuple(Answer(k, began, began, ended, images=size) for k, (began, ended) in calls_s), 0.0)


@contextlib.asynccontextmanager
async def peer(name: str, options: Mapping[str, object], cache: Path, log: Path) -> AsyncIterator[Peer]:
    """A process with a pipeline, once it has found its best batch size. Raises RuntimeError where it dies."""
    own = (sys.executable, "-P", "-m", "bench.peers.process", *flags(options))
    bound_to_us = (sys.executable, "-I", "-S", str(lifeline.__file__), str(os.getpid()))
    root = str(Path(__file__).parents[2])
    environment = {
        # Threads of OpenMP wait as they do by themselves, which is best for a process that has the machine to itself.
        **{name: value for name, value in os.environ.items() if name not in (WAIT_POLICY, SPIN_COUNT)},
        "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", ""),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(*bound_to_us, *own),
            stdin=PIPE,
            stdout=PIPE,
            stderr=stderr,
            env=environment,
            limit=_LONGEST_LINE_BYTES,
            start_new_session=True,
        )
    try:
        about = await _answer(process, log)
        yield Peer(System(name, (process.pid,)), about, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its compilers as well
        await process.wait()


async def _answer(process: asyncio.subprocess.Process, log: Path) -> Any:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        last_lines = "\n".join(log_tail(log))
        raise RuntimeError(f"the peer's process ended, status {await process.wait()}; the end of {log}:\n{last_lines}")
    return json.loads(line)


@contextlib.asynccontextmanager
async def own_system(
    name: str, settings: Mapping[str, str], profile: Path | None, dtype: str, model: Path
) -> AsyncIterator[tuple[System, str]]:
    """A deployment of ours, and its address."""
    async with deployed({"leader_ttl_s": str(_LEADER_TTL_S)} | dict(settings), profile, dtype, model) as running:
        pids = running.supervisor.pids()
        workers = tuple(pid for child, pid in pids.items() if child.startswith(("unet", "vae")))
        others = tuple(pid for pid in pids.values() if pid not in workers)
        schedulers = tuple(pid for child, pid in pids.items() if child.startswith("scheduler"))
        yield System(name, workers, others, schedulers), running.deployment.addresses[0]


ONE, BATCHED, LOOP, OURS = "one at a time", "batched", "bare loop", "ours"
SKIPS: dict[str, bool | None] = {"off": False, "auto": None}


@dataclass(frozen=True)
class Contender:
    """One row of the tables. `kind`: ONE, BATCHED, LOOP or OURS; `client`: of its server, `peer`: of a bare loop."""

    name: str
    kind: str
    system: System
    client: AsyncClient | None = None
    peer: Peer | None = None
    skip_cfg: bool | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether it is a server that people would write."""
        return self.kind in (ONE, BATCHED)

    def about(self) -> dict[str, Any]:
        return {"kind": self.kind, "system": self.system.name}


@contextlib.asynccontextmanager
async def started(
    model: Path,
    dtype: str,
    profile: Path | None,
    peers: Sequence[str],
    asked: dict[str, object],
    ours: Mapping[str, Mapping[str, str]],
    skip: Sequence[str],
    cache: Path,
) -> AsyncIterator[tuple[list[Contender], dict[str, Any]]]:
    """All contenders, one started after the other, and the peers' descriptions of themselves.

    `peers`: eager, compiled or both; `asked`: options of their processes; `ours`: settings by name; `skip`: of SKIPS.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def client(address: str) -> AsyncClient:
            return await stack.enter_async_context(AsyncClient(address, patience_s=_PATIENCE_S))

        contenders: list[Contender] = []
        about: dict[str, Any] = {}
        os.makedirs(cache, exist_ok=True)
        for name in peers:
            log = cache / f"peer-{name}-{dtype}.log"
            each = await stack.enter_async_context(peer(name, asked | {"compiled": name == "compiled"}, cache, log))
            about[name] = each.about
            contenders += [
                Contender(f"{ONE}, {name}", ONE, each.system, await client(each.about["one"])),
                Contender(f"{BATCHED}, {name}", BATCHED, each.system, await client(each.about["batched"])),
                Contender(f"{LOOP}, {name}", LOOP, each.system, peer=each),
            ]
        for name, settings in ours.items():
            of_one = own_system(name, settings, profile, dtype, model)
            system, address = await stack.enter_async_context(of_one)
            contenders += [
                Contender(f"{name}, skipping {skips}", OURS, system, await client(address), skip_cfg=SKIPS[skips])
                for skips in skip
            ]
        yield contenders, about


SATURATED, ALONE, BURST = "saturated", "alone", "burst"
# Shares of the best baseline's saturated throughput.
POISSON: Mapping[str, float] = {"Poisson 70 %": 0.7, "Poisson 90 %": 0.9}
LOADS = (SATURATED, ALONE, *POISSON, BURST)


@dataclass(frozen=True)
class Amounts:
    """How long and how many. In the saturated load `clients` send `turns` requests each, one after the other, but
    `clients_of_one` of them where requests are served one at a time, which fewer clients saturate."""

    clients: int
    clients_of_one: int
    turns: int
    alone: int
    poisson_s: float
    burst: int


def load_of(name: str, amounts: Amounts, mix: Mix, seed: int, *, rate_per_s: float = 0.0, one: bool = False) -> Load:
    """A load, the same for the same arguments. `rate_per_s`: of Poisson arrivals; `one`: served one at a time."""
    if name == SATURATED:
        clients = amounts.clients_of_one if one else amounts.clients
        return ClosedLoop(Drawn(mix, seed, amounts.turns * clients), clients)
    if name == ALONE:
        return ClosedLoop(Drawn(mix, seed, amounts.alone), 1)
    if name == BURST:
        return OpenLoop(bursts(amounts.burst, mix, seed))
    return OpenLoop(poisson(rate_per_s, mix, seed, seconds=amounts.poisson_s))


_REST_S = 0.5
_REST_WITHIN_S = 60.0
_PATIENCE_S = 60.0
_LOOP_PROMPTS = 64


@dataclass(frozen=True)
class Course:
    """The course of a measurement. `mix`: the parameters of every request, but for skipping."""

    loads: Sequence[str]
    amounts: Amounts
    mix: Mix
    seed: int
    warm_up_s: float
    settle_s: float


class Field:
    def __init__(self, contenders: Sequence[Contender], course: Course) -> None:
        self._contenders = contenders
        self._course = course
        self._systems = {contender.system.name: contender.system for contender in contenders}

    async def warm_up(self) -> None:
        """Let all contenders work for a while, then finish their background work: nothing of that is measured."""
        course = self._course
        for contender in self._contenders:
            if contender.client:
                clients = 1 if contender.kind == ONE else course.amounts.clients
                load = ClosedLoop(Drawn(self._mix(contender), 0), clients, course.warm_up_s)
                window = await send(contender.client, load)
                say(f"warming up, {contender.name}: {window.images_per_s:.2f} images/s")
                if not await until_quiet([contender.system], course.settle_s):
                    say(f"{contender.name} goes on working after {course.settle_s:g} s without requests")

    async def round(self, number: int) -> dict[str, Any]:
        """Every load, in order, on every contender, another one first each time."""
        capacities: dict[str, float] = {}
        loads: dict[str, Any] = {}
        for place, name in enumerate(self._course.loads):
            rate_per_s = self._rate_per_s(name, capacities)
            results: dict[str, Any] = {}
            for contender in order_of_round(self._contenders, number + place):
                if contender.kind == LOOP and name not in (SATURATED, ALONE):
                    continue
                # The latencies of a queue that only grows would depend on the length of the load alone.
                if capacities.get(contender.name, rate_per_s) < rate_per_s:
                    continue
                results[contender.name] = found = await self._window(contender, name, number, rate_per_s)
                if name == SATURATED:
                    capacities[contender.name] = found["images_per_s"]
                say(f"round {number + 1}, {name}, {contender.name}: {_line(found)}")
            loads[name] = {"rate_per_s": rate_per_s, "results": results}
        return {"loads": loads}

    def _rate_per_s(self, name: str, capacities: Mapping[str, float]) -> float:
        """A share of the best baseline's saturated throughput in the same round."""
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
        if contender.client is None:
            return await self._loop(contender, name)
        mix, seed = self._mix(contender), self._course.seed + number
        one = contender.kind == ONE
        load = load_of(name, self._course.amounts, mix, seed, rate_per_s=rate_per_s, one=one)
        return numbers(await send(contender.client, load))

    async def _loop(self, contender: Contender, name: str) -> dict[str, Any]:
        assert contender.peer is not None
        like, amounts = self._course.mix.like, self._course.amounts
        best = contender.peer.about["best_size"]
        # As many pictures as throughput is taken over where there are clients: all but their first and last turns.
        size, calls = (1, amounts.alone) if name == ALONE else (best, (amounts.turns - 2) * amounts.clients // best)
        prompts = [request.prompt for request in Drawn(self._course.mix, self._course.seed, _LOOP_PROMPTS)]
        asked = {"num_inference_steps": like.num_inference_steps, "guidance_scale": like.guidance_scale}
        return numbers(await contender.peer.loop(size, max(2, calls), prompts=prompts, **asked))

    def _mix(self, contender: Contender) -> Mix:
        """Peers skip nothing, whatever they are asked."""
        like = replace(self._course.mix.like, skip_cfg=contender.skip_cfg if contender.kind == OURS else None)
        return replace(self._course.mix, like=like)


def numbers(window: Window) -> dict[str, Any]:
    latencies_s = [round(answer.latency_s, 4) for answer in window.served]
    return asdict(summarise([window])) | {"seconds": window.seconds, "latencies_s": latencies_s}


def _line(found: Mapping[str, Any]) -> str:
    failed = f", failed: {found['errors']}" if found["errors"] else ""
    return (
        f"{found['images_per_s']:.2f} images/s, mean {found['mean_s']:.2f} s, P99 {found['p99_s']:.2f} s, "
        f"others {found['cores_of_others']:.1%} of a core{failed}"
    )

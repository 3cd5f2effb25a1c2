"""Latents between two processes that are killed again and again: is any transfer torn, stale or lost, does any leak?

    python -m bench.latents [--transfers 10000] [--kills 40] [--transports cuda_ipc] [--slot-bytes 32768]

needs a GPU. Without one, the stand-in driver shows everything but the times:

    STANDIN_CUDA_PAUSE_US=200 python -m tests.cuda_driver python -m bench.latents

An owner and a reader, real processes, transfer over `lanes` slots at once; one of the two is killed (SIGKILL) at random
moments and started again. Most transfers are read and then released. Of some, the slot is released and written anew
while the read is under way: it must return all of the latents or none. Some are read after their release: nothing must
be found. A reader that was killed leaves its slots to the next, which must find them whole.
"""

import asyncio
import contextlib
import json
import random
import signal
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.command import run, say
from bench.latents_sides import Answer
from synerdiff.latents.cuda_ipc import TRANSPORT

ROOT = Path(__file__).parents[1]
SIDES = "bench.latents_sides"
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Trial:
    transfers: int = 10_000
    kills: int = 40
    transports: tuple[str, ...] = (TRANSPORT,)
    slot_bytes: int = 32768
    lanes: int = 8
    seed: int = 0
    cuda_device: int = 0
    leak_tolerance_bytes: int = 0
    """Where others use the device too, what it has free is not only this trial's doing."""

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "transports": self.transports,
            "cuda_device": self.cuda_device,
            "slots": self.lanes + 2,
            "slot_bytes": self.slot_bytes,
        }


@dataclass
class Findings:
    """The results. `violations` names each transfer that was torn, stale or lost, and each leak."""

    whole: int = 0
    raced: Counter[str] = field(default_factory=Counter)
    late: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    transports: Counter[str] = field(default_factory=Counter)
    unreachable: int = 0
    read_ms: list[float] = field(default_factory=list)
    open_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def summary(self) -> str:
        lines = [
            f"{self.whole} transfers whole over {dict(self.transports)} in {self.seconds:.0f} s",
            f"killed: {dict(self.kills)}; reads while the owner was away: {self.unreachable}",
            f"read while released and written anew: {dict(self.raced)}; read after release, nothing found: {self.late}",
            f"read, one slot: p50 {_quantile(self.read_ms, 50):.3f} ms, p99 {_quantile(self.read_ms, 99):.3f} ms",
            f"open: {', '.join(f'{ms:.1f}' for ms in self.open_ms)} ms",
            f"torn, stale, lost or leaked: {len(self.violations)}",
        ]
        return "\n".join(lines + self.violations[:20])


class SideDied(Exception):
    """The process was killed before it answered."""


class Side:
    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.address = address
        self.process = process
        self.died = False
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, role: str, trial: Trial, listen: str = "127.0.0.1:0") -> "Side":
        """Start a process and wait until it is ready."""
        settings = json.dumps({**trial.settings, "listen": listen})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", SIDES, role, settings), cwd=ROOT, stdin=PIPE, stdout=PIPE
        )
        assert process.stdout
        ready = await process.stdout.readline()
        if not ready:
            raise SideDied(f"the {role} did not start")
        return cls(process, json.loads(ready)["address"])

    async def ask(self, command: str, **arguments: Any) -> Answer:
        """The answer to a command. Raises SideDied, or RuntimeError where the command failed."""
        self._number += 1
        number = self._number
        self._asked[number] = answer = asyncio.get_running_loop().create_future()
        if self.died:
            raise SideDied
        assert self.process.stdin
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(json.dumps({"number": number, "command": command, **arguments}).encode() + b"\n")
            await self.process.stdin.drain()
        found: Answer = await answer
        if "error" in found:
            raise RuntimeError(f"{command}: {found['error']}")
        return found

    async def _listen(self) -> None:
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):  # the end of a killed process may cut a line short
                answer = json.loads(line)
                self._asked.pop(answer["number"]).set_result(answer)
        self.died = True
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(SideDied())

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self._listening

    async def end(self) -> int:
        """Let it end by itself; its exit status."""
        assert self.process.stdin
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)


class Experiment:
    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.findings = Findings()
        self._random = random.Random(trial.seed)
        self._seeds = iter(range(1, 1 << 62))
        self._kill_at = sorted(self._random.sample(range(1, max(2, trial.transfers)), trial.kills), reverse=True)
        self._sides: dict[str, Side] = {}
        self._there = asyncio.Condition()

    async def run(self) -> Findings:
        """Start both sides, transfer, kill, and look for leaks."""
        free_before = await free_bytes(self.trial)
        started = time.perf_counter()
        self._sides = {"owner": await Side.start("owner", self.trial), "reader": await Side.start("reader", self.trial)}
        self._address = self._sides["owner"].address
        try:
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(self._kill())
                lanes = [group.create_task(self._lane()) for _ in range(self.trial.lanes)]
                await asyncio.wait(lanes)
                await killing
            self.findings.seconds = time.perf_counter() - started
            await self._look_for_leaks()
        finally:
            for side in self._sides.values():
                if side.process.returncode is None:
                    await side.kill()
        await self._look_for_taken_memory(free_before)
        return self.findings

    # ---- transfers

    async def _lane(self) -> None:
        while self.findings.whole < self.trial.transfers:
            with contextlib.suppress(SideDied):
                await self._transfer(self._random.random())

    async def _transfer(self, chance: float) -> None:
        owner = await self._side("owner")
        seed = next(self._seeds)
        slot = (await owner.ask("write", seed=seed))["slot"]
        if chance < 0.1:
            await self._race(owner, slot, seed)
        elif chance < 0.15:
            await owner.ask("release", slot=slot)
            outcome = await self._read(slot, seed)
            self.findings.late += outcome == "none"
            self._judge(outcome in ("none", "unreachable"), f"stale: found {outcome} in {slot} after its release")
        else:
            outcome = await self._read(slot, seed)
            self._judge(outcome == "whole" or owner.died, f"lost: found {outcome} in {slot}, which was held")
            self.findings.whole += outcome == "whole"
            await owner.ask("release", slot=slot)

    async def _race(self, owner: Side, slot: Answer, seed: int) -> None:
        """Read while the slot is released and written by its next holder."""
        reading = asyncio.create_task(self._read(slot, seed))
        await asyncio.sleep(self._random.random() * 0.002)
        try:
            await owner.ask("release", slot=slot)
            again = (await owner.ask("write", seed=next(self._seeds)))["slot"]
            await owner.ask("release", slot=again)
        finally:
            self.findings.raced[await reading] += 1

    async def _read(self, slot: Answer, seed: int) -> str:
        """The answer of the living reader; not before the owner of the slot or its successor is there."""
        patience = time.monotonic() + PATIENCE_S
        while True:
            reader = await self._side("reader")
            try:
                answer = await reader.ask("read", address=self._address, slot=slot, seed=seed)
            except SideDied:
                continue
            if answer["outcome"] != "unreachable" or time.monotonic() > patience:
                break
            self.findings.unreachable += 1
            await asyncio.sleep(0.1)
        if answer["outcome"] == "whole":
            if answer["transport"]:
                self.findings.transports[answer["transport"]] += 1
            self.findings.read_ms.append(answer["read_ms"])
        self._judge(answer["outcome"] != "torn", f"torn: {slot}")
        return str(answer["outcome"])

    def _judge(self, sound: bool, otherwise: str) -> None:
        if not sound:
            self.findings.violations.append(otherwise)

    # ---- kills

    async def _side(self, role: str) -> Side:
        """The side that lives now, or the next."""
        async with self._there:
            await self._there.wait_for(lambda: not self._sides[role].died)
            return self._sides[role]

    async def _kill(self) -> None:
        while self._kill_at and self.findings.whole < self.trial.transfers:
            if self.findings.whole < self._kill_at[-1]:
                await asyncio.sleep(0.001)
                continue
            self._kill_at.pop()
            role = self._random.choice(("owner", "reader"))
            await asyncio.sleep(self._random.random() * 0.01)
            await self._sides[role].kill()
            self.findings.kills[role] += 1
            listen = self._address if role == "owner" else "127.0.0.1:0"
            successor = await Side.start(role, self.trial, listen)
            async with self._there:
                self._sides[role] = successor
                self._there.notify_all()

    # ---- leaks

    async def _look_for_leaks(self) -> None:
        owner, reader = self._sides["owner"], self._sides["reader"]
        slots = self.trial.settings["slots"]
        free = (await owner.ask("count"))["free_slots"]
        self._judge(free == slots, f"leaked: {slots - free} slots held after the last release")
        if TRANSPORT in self.trial.transports:
            self.findings.open_ms = (await reader.ask("time_open", address=self._address, times=5))["open_ms"]
        await reader.ask("forget")
        await self.while_idle(owner, reader)
        for name, side in self._sides.items():
            status = await side.end()
            self._judge(status == 0, f"the {name} ended with status {status}")

    async def _look_for_taken_memory(self, free_before: int) -> None:
        """A driver may take a moment to free the memory of a killed process."""
        for _ in range(10):
            left = free_before - await free_bytes(self.trial)
            if left <= self.trial.leak_tolerance_bytes:
                return
            await asyncio.sleep(0.5)
        self.findings.violations.append(f"leaked: {left} bytes of device memory taken after all has ended")

    async def while_idle(self, owner: Side, reader: Side) -> None:
        """A hook for further checks, when the reader holds nothing and both live. Adds to `violations`."""


async def free_bytes(trial: Trial) -> int:
    """Device memory that is free, as a process of its own sees it; 0 where no device memory is used."""
    if TRANSPORT not in trial.transports:
        return 0
    command = [sys.executable, "-m", SIDES, "free", json.dumps(trial.settings)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
    output, _ = await process.communicate()
    return int(json.loads(output)["free_bytes"])


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else 0.0


def measure(
    transfers: int = Trial.transfers,
    kills: int = Trial.kills,
    transports: Annotated[str, typer.Option(help="By comma.")] = ",".join(Trial.transports),
    slot_bytes: int = Trial.slot_bytes,
    lanes: int = Trial.lanes,
    seed: int | None = None,
    cuda_device: int = Trial.cuda_device,
) -> Findings:
    seed = int(time.time()) if seed is None else seed
    say(f"seed {seed}")
    trial = Trial(transfers, kills, tuple(transports.split(",")), slot_bytes, lanes, seed, cuda_device)
    return asyncio.run(Experiment(trial).run())


if __name__ == "__main__":
    run(measure, show=Findings.summary, well=lambda findings: not findings.violations)

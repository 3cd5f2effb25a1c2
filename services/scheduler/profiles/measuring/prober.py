"""Runs items on a real pair of workers, through the owner of their streams.

The owner passes commands on (`send`), gives numbers of ticks that no plan has had (`next_tick`), and passes every
report to the prober. Items of a sweep are a plan in step: each begins on both workers when the one before
has ended on both, as in service. Not counted are the first item of a plan, and an item that runs for the first time: it
does so by itself, which shows its memory. Where the two workers share no pace (other hosts), every item is a
plan of its own, sent to both at once.
"""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.scheduler.engine import effects
from services.scheduler.engine.events import Report
from services.scheduler.profiles.measuring.rounds import (
    Footprint,
    Probe,
    ProbeFailed,
    ProbeItem,
    ProbeTask,
    ProbeTasks,
    RoundTimes,
    Run,
    round_times,
)
from synerdiff import plans
from synerdiff.host import boot_id
from synerdiff.registry import WorkerRecord
from synerdiff.requests import ImageFormat

REPORT_TIMEOUT_S = 120.0
_HIGH_WATER = re.compile(r"^VmHWM:\s*(\d+) kB", re.M)
_RESET_HIGH_WATER = "5"  # proc(5), clear_refs: the peak resident set size begins again at the present size


class PeakMemory:
    """Resident bytes of the workers' processes at their highest, summed; 0 where that cannot be known."""

    def __init__(self, processes: list[Path]) -> None:
        self._processes = processes

    @classmethod
    def of(cls, *workers: WorkerRecord) -> "PeakMemory":
        """Of workers whose processes are on this host and readable by this one; of none where one is not."""
        processes = [Path(f"/proc/{worker.pid}") for worker in workers]
        ours = all(
            worker.boot_id == boot_id() and _is_worker(process, worker.kind)
            for worker, process in zip(workers, processes, strict=True)
        )
        return cls(processes if ours else [])

    def restart(self) -> None:
        """Forget the peak so far."""
        try:
            for process in self._processes:
                (process / "clear_refs").write_text(_RESET_HIGH_WATER)
        except OSError:
            self._processes = []

    def peak_bytes(self) -> int:
        """The most since `restart`."""
        with contextlib.suppress(OSError):
            told = ((process / "status").read_text() for process in self._processes)
            return 1024 * sum(int(kib[1]) for status in told if (kib := _HIGH_WATER.search(status)))
        return 0


def _is_worker(process: Path, kind: str) -> bool:
    """Whether the process is the one of the record: in another container its id is another process's."""
    try:
        return f"services.{kind}_worker".encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


@dataclass(frozen=True)
class ProbePair:
    """The two workers that share a device. `slots` and `arena_address` are as the UNet worker said when it attached."""

    unet: WorkerRecord
    vae: WorkerRecord
    slots: int
    arena_address: str


class Prober:
    """Runs sweeps and rounds. After `close` (or `give_way`) the workers hold nothing of it any more. `footprints`: of
    every item that has run."""

    def __init__(
        self,
        pair: ProbePair,
        size: tuple[int, int],
        leader_token: int,
        send: Callable[[effects.WorkerEffect], None],
        next_tick: Callable[[], int],
    ) -> None:
        self.pair = pair
        self.width, self.height = size
        self.in_step_works = True
        self.footprints: dict[Probe, Footprint] = {}
        self._token = leader_token
        self._send = send
        self._next_tick = next_tick
        self._tasks = ProbeTasks(pair.unet.model_card, *size)
        self._waits: dict[tuple[str, str | int], asyncio.Future[Any]] = {}
        self._memory = PeakMemory.of(pair.unet, pair.vae)
        name = f"probe {leader_token} {pair.unet.worker_id} {pair.vae.worker_id}"
        self._pace = hashlib.sha256(name.encode()).hexdigest()[:16]

    # ---- reports of the workers

    def reported(self, worker_id: str, report: Report) -> None:
        """Take a worker's report, possibly the answer to a command of this prober."""
        match report:
            case plans.TaskReady(task_id):
                self._came("ready", task_id, report)
            case plans.TaskFailed(task_id, _, message) if task_id.startswith(self._tasks.prefix):
                self.abort(f"{task_id}: {message}")
            case plans.UnetTickDone(tick) if worker_id == self.pair.unet.worker_id:
                self._came("unet", tick, report)
            case plans.VaeTickDone(tick) if worker_id == self.pair.vae.worker_id:
                self._came("vae", tick, report)

    def abort(self, why: str) -> None:
        """End the measuring under way: it raises ProbeFailed."""
        for wait in self._waits.values():
            if not wait.done():
                wait.set_exception(ProbeFailed(why))

    def _came(self, kind: str, key: str | int, report: object) -> None:
        wait = self._waits.get((kind, key))
        if wait is not None and not wait.done():
            wait.set_result(report)

    def _expect(self, kind: str, key: str | int) -> "asyncio.Future[Any]":
        wait = self._waits[kind, key] = asyncio.get_running_loop().create_future()
        wait.add_done_callback(lambda _: self._waits.pop((kind, key), None))
        return wait

    # ---- measuring

    async def sweep(self, probes: Sequence[Probe]) -> list[Run]:
        """Run items one right after the other. Raises ProbeFailed."""
        for probe in probes:
            if probe not in self.footprints:
                self._memory.restart()
                first = await self.run_round([ProbeItem.whole(probe)], in_step=False)
                self.footprints[probe] = first.footprint(self._memory.peak_bytes())
        lead = min(probes, key=lambda probe: probe.rows + probe.decodes)
        items = [ProbeItem.whole(probe) for probe in (lead, *probes)]
        sides = {bool(probe.rows) for probe in probes} | {not probe.decodes for probe in probes}
        if self.in_step_works or len(sides) == 1:
            ran = await self.run_round(items, in_step=len(sides) > 1)
            if len(sides) == 1 or ran.in_step:
                return ran.runs((lead, *probes))[1:]
            self.in_step_works = False
        rounds = [await self.run_round([item], in_step=False) for item in items]
        return [run for ran, probe in zip(rounds[1:], probes, strict=True) for run in ran.runs([probe])]

    async def run_round(self, items: Sequence[ProbeItem], in_step: bool) -> RoundTimes:
        """Run items in order as one plan for each worker. Raises ProbeFailed."""
        return (await self.run_rounds([items], in_step, ahead=1))[0]

    async def run_rounds(self, rounds: Sequence[Sequence[ProbeItem]], in_step: bool, ahead: int) -> list[RoundTimes]:
        """Run rounds one after the other, `ahead` of them under way at a time. Raises ProbeFailed."""
        items = [item for items in rounds for item in items]
        calls = sum(bool(item.rows) for item in items)
        await self._provide(max(item.rows for item in items), calls, max(item.decodes for item in items))
        under_way: list[asyncio.Task[RoundTimes]] = []
        try:
            for number, each in enumerate(rounds):
                if number >= ahead:
                    await under_way[number - ahead]
                under_way.append(asyncio.create_task(self._run(each, in_step)))
                await asyncio.sleep(0)
            return [await each for each in under_way]
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _run(self, items: Sequence[ProbeItem], in_step: bool) -> RoundTimes:
        tick = self._next_tick()
        unet, vae = self._plans(items, tick, in_step)
        waits = [self._expect("unet", tick) if unet else None, self._expect("vae", tick) if vae else None]
        if vae:
            self._send(effects.SendVaePlan(self.pair.vae.worker_id, plans.VaePlan(self._token, tick, vae)))
        if unet:
            self._send(effects.SendUnetPlan(self.pair.unet.worker_id, plans.UnetPlan(self._token, tick, unet)))
        unet_done, vae_done = await asyncio.gather(*(_soon(wait) for wait in waits))
        return round_times(items, unet_done, vae_done)

    def give_way(self) -> None:
        """Let go of both workers at once: work that still waits there for the device is dropped at the next item."""
        task_ids = self._tasks.clear()
        self.abort("gave way")
        if task_ids:
            self._send(effects.CancelOnWorker(self.pair.unet.worker_id, task_ids))
            self._send(effects.CancelOnWorker(self.pair.vae.worker_id, task_ids))

    def close(self) -> None:
        """Free the tasks and images held on the workers."""
        finished = tuple(task.task_id for task in self._tasks.finished)
        others = tuple(task_id for task_id in self._tasks.clear() if task_id not in finished)
        if finished:
            self._send(effects.ForgetImages(self.pair.vae.worker_id, finished))
            self._send(effects.ReleaseSlots(self.pair.unet.worker_id, finished))
        if others:
            self._send(effects.CancelOnWorker(self.pair.unet.worker_id, others))

    # ---- tasks

    async def _provide(self, rows: int, calls: int, decodes: int) -> None:
        """Have tasks for an item of `rows`, stepped `calls` times, and finished ones for `decodes` decodes."""
        tasks = self._tasks
        for held in (tasks.guided, tasks.unguided):
            self._drop([task for task in held if task.calls_left < calls], held)
        fresh = [(tasks.long(guided=True), tasks.guided) for _ in range(rows // 2 - len(tasks.guided))]
        fresh += [(tasks.long(guided=False), tasks.unguided) for _ in range(rows % 2 - len(tasks.unguided))]
        short = [tasks.short() for _ in range(decodes - len(tasks.finished))]
        await self._admit([task for task, _ in fresh] + short)
        for task, held in fresh:
            if task.calls_left < calls:
                raise ProbeFailed(f"a task of this model makes {task.num_calls} UNet calls; {calls} are needed")
            held.append(task)
        await self._finish(short)
        tasks.finished += short
        tasks.arriving.clear()

    def _drop(self, worn: list[ProbeTask], held: list[ProbeTask]) -> None:
        if worn:
            held[:] = [task for task in held if task not in worn]
            self._send(effects.CancelOnWorker(self.pair.unet.worker_id, tuple(task.task_id for task in worn)))

    async def _admit(self, tasks: Sequence[ProbeTask]) -> None:
        waits = []
        self._tasks.arriving += tasks
        for task in tasks:
            waits.append(self._expect("ready", task.task_id))
            self._send(effects.Admit(self.pair.unet.worker_id, task.spec))
        for task, ready in zip(tasks, await asyncio.gather(*map(_soon, waits)), strict=True):
            task.num_calls = ready.num_calls

    async def _finish(self, tasks: Sequence[ProbeTask]) -> None:
        """Step tasks to their end, so that their latents are in their slots."""
        while any(task.calls_left for task in tasks):
            tick = self._next_tick()
            item = plans.UnetItem(tuple(task.step() for task in tasks))
            wait = self._expect("unet", tick)
            self._send(effects.SendUnetPlan(self.pair.unet.worker_id, plans.UnetPlan(self._token, tick, (item,))))
            done: plans.UnetTickDone = await _soon(wait)
            slots = dict(done.finished)
            for task in tasks:
                task.slot = slots.get(task.task_id)
        if not all(task.slot for task in tasks):
            raise ProbeFailed("the UNet worker did not finish the tasks to be decoded")

    # ---- plans

    def _plans(
        self, items: Sequence[ProbeItem], tick: int, in_step: bool
    ) -> tuple[tuple[plans.UnetItem, ...], tuple[plans.VaeItem, ...]]:
        unet: list[plans.UnetItem] = []
        vae: list[plans.VaeItem] = []
        unet_last: plans.ItemRef | None = None
        vae_last: plans.ItemRef | None = None
        for place, item in enumerate(items, start=1):
            threads, here = item.setting, plans.ItemRef(tick, place)
            unet_after, vae_after = vae_last, unet_last
            if item.rows:
                tasks = self._tasks.guided[: item.rows // 2] + self._tasks.unguided[: item.rows % 2]
                entries = tuple(task.step() for task in tasks)
                unet.append(plans.UnetItem(entries, self._execution(place, threads.unet_threads, unet_after, in_step)))
                unet_last = here
            if item.decodes:
                decodes = tuple(self._decode(task, item) for task in self._tasks.finished[: item.decodes])
                vae.append(plans.VaeItem(decodes, self._execution(place, threads.vae_threads, vae_after, in_step)))
                vae_last = here
        return tuple(unet), tuple(vae)

    def _execution(self, place: int, threads: int, after: plans.ItemRef | None, in_step: bool) -> plans.Execution:
        if not in_step:
            return plans.Execution(place, threads)
        return plans.Execution(place, threads, after, round(REPORT_TIMEOUT_S * 1000 / 2), self._pace)

    def _decode(self, task: ProbeTask, item: ProbeItem) -> plans.DecodeEntry:
        assert task.slot is not None, "only finished tasks are decoded"
        return plans.DecodeEntry(
            task_id=task.task_id,
            arena_address=self.pair.arena_address,
            slot=task.slot,
            width=self.width,
            height=self.height,
            image_format=ImageFormat.PNG,
            parameters_json="{}",
            chunks=item.setting.chunks,
            first_chunk=item.first,
            end_chunk=item.end,
        )


async def _soon(report: "asyncio.Future[Any] | None") -> Any:
    if report is None:
        return None
    try:
        return await asyncio.wait_for(report, REPORT_TIMEOUT_S)
    except TimeoutError:
        raise ProbeFailed(f"a worker has said nothing for {REPORT_TIMEOUT_S:g} s") from None

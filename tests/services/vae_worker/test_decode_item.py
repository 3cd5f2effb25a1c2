"""Items on the device thread: in turn with the UNet worker, with their threads, and decodes cut into chunks."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from services.vae_worker import decode_item
from services.vae_worker.decode_item import DecodeItem, FinishedDecode, PlanDecodes
from services.vae_worker.decoder import BatchDecoder, DecodeFailure, Picture
from synerdiff import pace
from synerdiff.host import usable_cores
from synerdiff.latents.client import Latents
from synerdiff.models.family import VaeSide
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide, SharedPace
from synerdiff.plans import DecodeEntry, Execution, ItemRef, ItemTiming, SlotRef, VaeItem
from synerdiff.requests import ImageFormat
from synerdiff.worker.device_thread import DevicePlan, DeviceThread
from tests.services.vae_worker.conftest import assert_decoded
from tests.services.vae_worker.stage import latents_of
from tests.waiting import HANG_S, VirtualTime, WatchedTime

SIDE = 32
FOREVER_MS = 10_000 * int(HANG_S)


class CountingDecoder(BatchDecoder):
    """Remembers the batches begun, and how many threads torch had then."""

    def __init__(self, side: VaeSide) -> None:
        super().__init__(side)
        self.begun: list[int] = []
        self.threads: list[int] = []

    def begin(self, batch: Any, width: int, height: int, bands: int, exact: bool = False) -> Any:
        self.begun.append(len(batch))
        self.threads.append(torch.get_num_threads())
        return super().begin(batch, width, height, bands, exact)


@dataclass(frozen=True)
class Plan:
    """A plan on the device thread, and what is under way of it."""

    on_device: DevicePlan
    decodes: PlanDecodes


@dataclass(frozen=True)
class Done:
    """An item that is over."""

    finished: list[FinishedDecode]
    lost: list[str]
    timing: ItemTiming


class Device:
    """A device thread and what it is given: plans as lists of items of entries."""

    def __init__(self, side: VaeSide, directory: Path) -> None:
        self.decoder = CountingDecoder(side)
        self.failures: list[Exception] = []
        pacer = Pacer(PaceSide.VAE, directory)
        self.thread = DeviceThread(side.compute, pacer, ThreadShare(1), self.failures.append)
        self.thread.start()
        self.latents = dict(zip("abcd", latents_of(4, SIDE, SIDE), strict=True))
        self.cancelled: set[str] = set()

    def plan(self, *items: list[DecodeEntry]) -> Plan:
        decodes = PlanDecodes([VaeItem(tuple(item)) for item in items], self.cancelled)
        return Plan(self.thread.begin_plan(1), decodes)

    def run(self, plan: Plan, entries: list[DecodeEntry], execution: Execution | None = None) -> Done:
        """Run an item and wait until it is over."""
        over: queue.SimpleQueue[DecodeItem] = queue.SimpleQueue()
        self.submit(plan, entries, over.put, execution)
        item = over.get(timeout=HANG_S)
        return Done(item.finished, item.lost, plan.on_device.timings[-1])

    def submit(
        self,
        plan: Plan,
        entries: list[DecodeEntry],
        over: Callable[[DecodeItem], None],
        execution: Execution | None = None,
    ) -> None:
        fresh = tuple((entry, self._stored(entry.task_id)) for entry in entries if entry.first_chunk == 0)
        resumed = tuple(entry for entry in entries if entry.first_chunk > 0)
        item = DecodeItem(execution or Execution(), fresh, resumed, self.decoder, plan.decodes, over)
        self.thread.submit_item(plan.on_device, item)

    def _stored(self, task_id: str) -> Latents:
        return Latents(memoryview(bytearray(self.latents[task_id].contiguous().numpy().tobytes())), "float32")


@pytest.fixture
def device(vae_side: VaeSide, tmp_path: Path) -> Iterator[Device]:
    made, before = Device(vae_side, tmp_path), torch.get_num_threads()
    yield made
    made.thread.close()
    assert not made.failures
    torch.set_num_threads(before)


def entry(task_id: str, first: int = 0, end: int = 1, chunks: int = 1) -> DecodeEntry:
    slot = SlotRef("a", 0, 1)
    return DecodeEntry(task_id, "", slot, SIDE, SIDE, ImageFormat.PNG, "{}", chunks, first, end)


def pictures(*done: Done) -> dict[str, np.ndarray[Any, Any]]:
    found = {f.entry.task_id: f.outcome for one in done for f in one.finished}
    assert all(isinstance(outcome, Picture) for outcome in found.values()), found
    return {task_id: outcome.pixels for task_id, outcome in found.items() if isinstance(outcome, Picture)}


def test_a_decode_spans_items_by_its_chunks(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_item, "time", SimpleNamespace(perf_counter=count().__next__))  # a second for each part
    items = [[entry("a", 0, 2, 4), entry("b", 0, 2, 4)], [entry("a", 2, 4, 4), entry("b", 2, 4, 4), entry("c")]]
    plan = device.plan(*items)
    first = device.run(plan, items[0])
    assert first.finished == []
    assert (first.timing.rows, plan.decodes.unfinished()) == (2, ["a", "b"])
    second = device.run(plan, items[1])
    assert (second.timing.rows, plan.decodes.unfinished()) == (3, [])
    assert device.decoder.begun == [2, 1], "equal ranges are one batch, and what goes on is not begun again"
    found = pictures(second)
    assert_decoded([found[name] for name in "abc"], torch.stack([device.latents[name] for name in "abc"]))
    took_ms = {f.entry.task_id: f.decode_ms for f in second.finished}
    assert took_ms == {"a": 2000, "b": 2000, "c": 1000}, "the time of the first item counts too"


def test_exact_entries_are_decoded_one_by_one_with_the_same_threads(device: Device) -> None:
    entries = [replace(entry(name), exact=True) for name in "abc"]
    outcome = device.run(device.plan(entries), entries, Execution(threads=usable_cores()))
    assert (device.decoder.begun, set(device.decoder.threads)) == ([1, 1, 1], {1})
    assert set(pictures(outcome)) == {"a", "b", "c"}


def test_tasks_that_part_later_are_not_one_batch(device: Device) -> None:
    items = [[entry("a", 0, 1, 2), entry("b", 0, 1, 2)], [entry("a", 1, 2, 2)], [entry("b", 1, 2, 2)]]
    plan = device.plan(*items)
    outcomes = [device.run(plan, item) for item in items]
    assert device.decoder.begun == [1, 1]
    assert [set(pictures(outcome)) for outcome in outcomes] == [set(), {"a"}, {"b"}]


def test_entries_whose_earlier_chunks_were_not_done_are_lost(device: Device) -> None:
    items = [[entry("a", 0, 1, 4)], [entry("a", 2, 4, 4), entry("b", 1, 4, 4)]]
    plan = device.plan(*items)
    device.run(plan, items[0])
    outcome = device.run(plan, items[1])
    assert (outcome.lost, outcome.finished, outcome.timing.rows) == (["a", "b"], [], 0)
    assert plan.decodes.unfinished() == ["a"]


def test_a_cancelled_decode_frees_its_progress(device: Device) -> None:
    items = [[entry("a", 0, 1, 2), entry("b", 0, 1, 2), entry("c", 0, 1, 4)], [entry("a", 1, 2, 2)], []]
    plan = device.plan(*items[:1], [*items[1], entry("b", 1, 2, 2)])
    device.run(plan, items[0])
    device.cancelled |= {"a", "c"}
    outcome = device.run(plan, [entry("a", 1, 2, 2), entry("b", 1, 2, 2), entry("c", 1, 2, 4)])
    assert "b" in pictures(outcome), "the rest of its batch goes on"
    assert (plan.decodes.batches, outcome.lost) == ([], [])


def test_what_is_abandoned_is_not_run_and_frees_its_progress(device: Device) -> None:
    items = [[entry("a", 0, 1, 2)], [entry("a", 1, 2, 2)]]
    plan = device.plan(*items)
    device.run(plan, items[0])
    device.thread.abandon_plans()
    abandoned = device.run(plan, items[1])
    assert (abandoned.finished, len(plan.on_device.timings)) == ([], 1)
    assert plan.decodes.batches == []


def test_a_fault_fails_its_batch_and_no_other(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = device.decoder.begin

    def faulty(batch: Any, width: int, height: int, bands: int, exact: bool) -> Any:
        if bands == 3:
            raise KeyError("ours")
        return begin(batch, width, height, bands, exact)

    monkeypatch.setattr(device.decoder, "begin", faulty)
    items = [[entry("a", 0, 3, 3), entry("b")]]
    plan = device.plan(*items)
    failed, sound = device.run(plan, items[0]).finished
    assert isinstance(failed.outcome, DecodeFailure)
    assert "ours" in failed.outcome.message
    assert isinstance(sound.outcome, Picture)
    assert plan.decodes.batches == []


def test_an_item_starts_when_the_one_before_it_has_ended_and_says_when_it_has_itself(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "time", watched := WatchedTime())
    unet = SharedPace("pair", PaceSide.UNET, tmp_path)
    execution = Execution(place=2, after=ItemRef(1, 1), patience_ms=FOREVER_MS, pace="pair")
    plan = device.plan([entry("a")])
    over = threading.Event()
    device.submit(plan, [entry("a")], lambda outcome: over.set(), execution)
    watched.until_somebody_sleeps()
    time.sleep(0.05)
    assert device.decoder.begun == [], "it did not wait"
    ended_ns = time.time_ns()
    unet.ended(ItemRef(1, 1))
    assert unet.wait(ItemRef(1, 2), FOREVER_MS) < FOREVER_MS
    assert over.wait(HANG_S)
    unet.close()
    [timing] = plan.on_device.timings
    assert timing.start_unix_ns >= ended_ns
    assert 50 <= timing.waited_ms < FOREVER_MS


def test_an_item_waits_no_longer_than_its_patience(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "time", VirtualTime())
    execution = Execution(place=1, after=ItemRef(1, 1), patience_ms=40, pace="pair")
    outcome = device.run(device.plan([entry("a")]), [entry("a")], execution)
    assert outcome.timing.waited_ms == pytest.approx(40)
    assert "a" in pictures(outcome)


def test_items_have_their_own_threads(device: Device) -> None:
    for threads in (0, 2, 0, 1000):
        device.run(device.plan([entry("a")]), [entry("a")], Execution(threads=threads))
    cores = usable_cores()
    assert device.decoder.threads == [1, min(2, cores), 1, cores]

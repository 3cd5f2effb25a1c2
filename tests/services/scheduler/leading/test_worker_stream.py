"""A stream to a worker that misbehaves, over real gRPC: it says so, and is over or whole."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.scheduler.engine.effects import SendUnetPlan, SendVaePlan
from services.scheduler.engine.events import Reported, UnetAttached, VaeAttached, WorkerAnnounced, WorkerLost
from services.scheduler.leading import worker_stream, worker_streams
from services.scheduler.leading.worker_stream import Patience
from services.scheduler.leading.worker_streams import WorkerStreams
from synerdiff.errors import StaleLeader, Unavailable
from synerdiff.plans import SkipReason, TaskFailed, UnetItem, UnetPlan, UnetTickDone, VaePlan
from synerdiff.registry import WorkerRecord
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from tests.services.scheduler.harness import Heard
from tests.services.scheduler.redis_jobs import metric
from tests.values import a_worker
from tests.waiting import until

UNKNOWN = 99  # of an enum
LOOK_S = 0.02


class Leader(Heard):
    """A Listener that may be superseded."""

    newest_token = -1

    def superseded(self, newest_token: int = 0) -> None:
        self.newest_token = newest_token


@dataclass
class Vae(stages_pb2_grpc.VaeStageServicer):
    """A VAE worker that answers nothing; its images come as a test has them come."""

    images: Callable[[], AsyncIterator[stages_pb2.DecodedImage]]
    commands: list[stages_pb2.VaeCommand] = field(default_factory=list)
    asked_for_images: int = 0

    async def Run(
        self, requests: AsyncIterator[stages_pb2.VaeCommand], context: Any
    ) -> AsyncIterator[stages_pb2.VaeReport]:
        await anext(requests)
        yield stages_pb2.VaeReport(attached=stages_pb2.VaeAttached(worker_id="vae-0"))
        async for command in requests:
            self.commands.append(command)

    async def Images(self, request: stages_pb2.ImagesRequest, context: Any) -> AsyncIterator[stages_pb2.DecodedImage]:
        self.asked_for_images += 1
        async for image in self.images():
            yield image


@dataclass
class Unet(stages_pb2_grpc.UnetStageServicer):
    """A UNet worker that reports what a test gives it."""

    reports: asyncio.Queue[stages_pb2.UnetReport] = field(default_factory=asyncio.Queue)

    async def Run(
        self, requests: AsyncIterator[stages_pb2.UnetCommand], context: Any
    ) -> AsyncIterator[stages_pb2.UnetReport]:
        await anext(requests)
        yield stages_pb2.UnetReport(attached=stages_pb2.UnetAttached(worker_id="unet-0", slots=4))
        while True:
            yield await self.reports.get()


@contextlib.asynccontextmanager
async def streaming(
    servicer: Vae | Unet, leader: Leader, patience: Patience | None = None
) -> AsyncIterator[tuple[WorkerStreams, WorkerRecord]]:
    """A stream to the worker, attached."""
    host, kind = ServiceHost(), "unet" if isinstance(servicer, Unet) else "vae"
    name = "UnetStage" if kind == "unet" else "VaeStage"
    host.add(f"synerdiff.v1.{name}", getattr(stages_pb2_grpc, f"add_{name}Servicer_to_server"), servicer)
    record = a_worker("unet" if kind == "unet" else "vae", address=await host.start("127.0.0.1:0"))
    streams = WorkerStreams(1, leader, patience=patience)
    streams.reconcile([record])
    try:
        await until(lambda: leader.all(UnetAttached) or leader.all(VaeAttached))
        yield streams, record
    finally:
        await streams.close()
        await host.drain(0)


async def no_images() -> AsyncIterator[stages_pb2.DecodedImage]:
    await asyncio.Event().wait()
    yield stages_pb2.DecodedImage()


def plan(record: WorkerRecord, tick: int) -> SendUnetPlan | SendVaePlan:
    if record.kind == "unet":
        return SendUnetPlan(record.worker_id, UnetPlan(1, tick, (UnetItem(()),)))
    return SendVaePlan(record.worker_id, VaePlan(1, tick, ()), 1.0)


async def test_an_image_that_cannot_be_read_fails_its_task_and_the_next_one_comes() -> None:
    async def images() -> AsyncIterator[stages_pb2.DecodedImage]:
        yield stages_pb2.DecodedImage(task_id="bad/0", format=UNKNOWN)  # type: ignore[arg-type]
        yield stages_pb2.DecodedImage(task_id="good/0", format=1)  # type: ignore[arg-type]
        await asyncio.Event().wait()

    leader, vae = Leader(), Vae(images)
    before = metric("unreadable_reports_total", kind="vae")
    with capture_logs() as lines:
        async with streaming(vae, leader):
            await until(lambda: len(leader.all(Reported)) == 2)
            await until(lambda: vae.commands)
    failed, image = (event.report for event in leader.all(Reported))
    assert isinstance(failed, TaskFailed)
    assert (failed.task_id, image.task_id) == ("bad/0", "good/0")
    assert "cannot be read" in failed.message
    assert list(vae.commands[0].stored.task_ids) == ["bad/0"], "or it would come again"
    assert metric("unreadable_reports_total", kind="vae") == before + 1
    assert [line["task_id"] for line in lines if line["log_level"] == "error"] == ["bad/0"]


async def broken() -> AsyncIterator[stages_pb2.DecodedImage]:
    raise Unavailable("too large, perhaps")
    yield stages_pb2.DecodedImage()


async def test_an_image_stream_that_breaks_is_said_each_time_and_ends_the_stream_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_stream, "IMAGES_AGAIN_S", 0.01)
    leader, vae = Leader(), Vae(broken)
    with capture_logs() as lines:
        async with streaming(vae, leader):
            await until(lambda: leader.all(WorkerLost))
    said = [line for line in lines if line["event"] == "image stream is opened again"]
    assert len(said) == worker_stream.IMAGES_TRIES - 1
    assert vae.asked_for_images == worker_stream.IMAGES_TRIES
    assert all("too large, perhaps" in line["reason"] for line in said)


async def test_a_leader_that_may_not_have_the_images_is_superseded() -> None:
    async def refused() -> AsyncIterator[stages_pb2.DecodedImage]:
        raise StaleLeader("there is a newer one", newest_token=7)
        yield stages_pb2.DecodedImage()

    leader = Leader()
    async with streaming(Vae(refused), leader):
        await until(lambda: leader.newest_token == 7)


async def test_an_entry_skipped_for_a_reason_of_tomorrow_runs_again() -> None:
    leader, unet = Leader(), Unet()
    skipped = stages_pb2.SkippedEntry(task_id="a/0", reason=UNKNOWN)  # type: ignore[arg-type]
    async with streaming(unet, leader):
        unet.reports.put_nowait(stages_pb2.UnetReport(tick_done=stages_pb2.UnetTickDone(tick=1, skipped=[skipped])))
        await until(lambda: leader.all(Reported))
    report = leader.all(Reported)[0].report
    assert isinstance(report, UnetTickDone)
    assert [entry.reason for entry in report.skipped] == [SkipReason.UNKNOWN_TASK]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_stream, "LOOK_EVERY_S", LOOK_S)


async def and_back(servicer: Vae | Unet, leader: Leader) -> None:
    """Return once a worker that never answers was suspect, lost, let be, called again, and lost again."""
    async with streaming(servicer, leader, Patience(10 * LOOK_S)) as (streams, record):
        streams.send(plan(record, 1))
        await until(lambda: leader.all(WorkerLost))
        before = len(leader.events)
        streams.reconcile([record])
        assert record.worker_id not in streams._streams, "it is let be for a while"
        while len(leader.events) == before:
            streams.reconcile([record])
            await asyncio.sleep(LOOK_S)
        assert isinstance(leader.events[before], UnetAttached | VaeAttached)
        streams.send(plan(record, 2))
        await until(lambda: len(leader.all(WorkerLost)) == 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["unet", "vae"])
async def test_a_worker_whose_device_hangs_gets_nothing_new_and_then_is_given_up(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_streams, "FIRST_PAUSE_S", 0.1)
    names = [("overdue_workers_total", {"kind": kind, "became": became}) for became in ("suspect", "lost")]
    names.append(("worker_losses_total", {"kind": kind}))
    before = [metric(name, **labels) for name, labels in names]
    leader = Leader()
    with capture_logs() as lines:
        await and_back(Unet() if kind == "unet" else Vae(no_images), leader)
    first = [event for event in leader.events if isinstance(event, WorkerAnnounced | WorkerLost)][:2]
    assert first == [WorkerAnnounced(f"{kind}-0", True, suspect=True), WorkerLost(f"{kind}-0")]
    assert [metric(name, **labels) for name, labels in names] == [count + 2 for count in before]
    said = [line for line in lines if line["event"].startswith("worker is given up")]
    assert ["tick 1" in said[0]["of"], "tick 2" in said[1]["of"]] == [True, True]
    assert "of 0.4 s" in said[1]["of"], "twice the patience: one that is only slow gets through in the end"


@pytest.mark.usefixtures("quick")
async def test_a_late_report_makes_a_suspect_as_good_as_any() -> None:
    leader, unet = Leader(), Unet()
    async with streaming(unet, leader, Patience(40 * LOOK_S)) as (streams, record):
        streams.send(plan(record, 1))
        await until(lambda: WorkerAnnounced("unet-0", True, suspect=True) in leader.events)
        streams.reconcile([record])
        assert leader.events[-1] == WorkerAnnounced("unet-0", True, suspect=True), "it announces itself all the while"
        unet.reports.put_nowait(stages_pb2.UnetReport(tick_done=stages_pb2.UnetTickDone(tick=1)))
        await until(lambda: leader.events[-1] == WorkerAnnounced("unet-0", True))
        assert not leader.all(WorkerLost)


@pytest.mark.usefixtures("quick")
async def test_a_leader_that_was_held_up_itself_blames_nobody() -> None:
    """Ten times the worker's patience goes by in one step of the event loop, and its report is there by then."""
    leader, unet = Leader(), Unet()
    async with streaming(unet, leader, Patience(10 * LOOK_S)) as (streams, record):
        streams.send(plan(record, 1))
        time.sleep(100 * LOOK_S)  # noqa: ASYNC251
        unet.reports.put_nowait(stages_pb2.UnetReport(tick_done=stages_pb2.UnetTickDone(tick=1)))
        await until(lambda: leader.all(Reported))
        assert not leader.all(WorkerLost)


async def test_another_life_of_a_worker_that_was_given_up_is_called_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_stream, "LOOK_EVERY_S", LOOK_S)
    monkeypatch.setattr(worker_streams, "FIRST_PAUSE_S", 1000.0)
    leader = Leader()
    async with streaming(Unet(), leader, Patience(10 * LOOK_S)) as (streams, record):
        streams.send(plan(record, 1))
        await until(lambda: leader.all(WorkerLost))
        await until(lambda: record.worker_id not in streams._streams)
        streams.reconcile([record])
        assert record.worker_id not in streams._streams
        streams.reconcile([a_worker("unet", address=record.address, pid=record.pid + 1)])
        await until(lambda: len(leader.all(UnetAttached)) == 2)


RECORD = a_worker(worker_id="unet-1", domain="cpu")


@pytest.mark.parametrize(
    ("records", "takes_new"), [([RECORD], True), ([replace(RECORD, draining=True)], False), ([], True)]
)
async def test_a_worker_takes_something_new_until_it_says_that_it_drains(
    records: list[WorkerRecord], takes_new: bool
) -> None:
    """One whose record has run out has a stream all the same: Redis is full, or its own way there is broken."""
    heard = Heard()
    streams = WorkerStreams(1, heard)
    streams.reconcile([RECORD])
    streams.reconcile(records)
    assert heard.events == [WorkerAnnounced("unet-1", takes_new)]
    await streams.close()


async def test_a_new_leader_attaches_to_a_worker_that_drains() -> None:
    streams = WorkerStreams(2, Heard())
    streams.reconcile([replace(RECORD, draining=True)])
    assert list(streams._streams) == ["unet-1"]
    await streams.close()

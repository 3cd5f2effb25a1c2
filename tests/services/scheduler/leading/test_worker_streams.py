"""Which workers the leader holds streams to, and what it is told of them."""

from dataclasses import replace
from typing import Any

import pytest

from bench.simulated_workers import CARD
from services.scheduler.leading.worker_streams import WorkerStreams
from synerdiff.registry import WorkerRecord

RECORD = WorkerRecord("unet-1", "unet", "127.0.0.1:1", CARD, "default", "cpu", "boot", 1)


class Announcements:
    """Hears who may take something new, and nothing else."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bool]] = []

    def worker_announced(self, worker_id: str, announced: bool) -> None:
        self.heard.append((worker_id, announced))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.mark.parametrize(
    ("records", "takes_new"), [([RECORD], True), ([replace(RECORD, draining=True)], False), ([], False)]
)
async def test_a_worker_takes_something_new_while_it_is_announced_and_does_not_drain(
    records: list[WorkerRecord], takes_new: bool
) -> None:
    events = Announcements()
    streams = WorkerStreams(1, events)
    streams.reconcile([RECORD])
    streams.reconcile(records)
    assert events.heard == [("unet-1", takes_new)]
    await streams.close()


async def test_a_new_leader_attaches_to_a_worker_that_drains() -> None:
    streams = WorkerStreams(2, Announcements())
    streams.reconcile([replace(RECORD, draining=True)])
    assert list(streams._streams) == ["unet-1"]
    await streams.close()

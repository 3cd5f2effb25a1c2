"""Which workers the leader holds streams to, and what it is told of them."""

from dataclasses import replace

import pytest

from services.scheduler.engine.events import WorkerAnnounced
from services.scheduler.leading.worker_streams import WorkerStreams
from synerdiff.registry import WorkerRecord
from tests.services.scheduler.harness import Heard
from tests.values import a_worker

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

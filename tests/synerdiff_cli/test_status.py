"""The live status of `synerdiff status --watch`: what it shows, in how many columns, and while nobody answers."""

import asyncio
import io
from datetime import datetime

import pytest
from rich.console import Console

from synerdiff.errors import Unavailable
from synerdiff.v1.operations_pb2 import GetStatusResponse, PlanningStatus, QueueStatus, WorkerStatus
from synerdiff_cli.status import frame, watch

GPU = "GPU-8c1a0e5b-6f0d-4f2e-9a51-0f4c2d9e7b13"
UNET = WorkerStatus(
    worker_id="unet-worker-6d9f8c7b5d-x2x7k",
    kind="unet",
    model="stable-diffusion-xl-base-1.0",
    domain=GPU,
    address="10.1.2.3:50052",
    attached=True,
    slots=64,
    slots_used=12,
    rows=24,
    running=12,
    mps_thread_percent=70,
)
VAE = WorkerStatus(worker_id="vae-1", kind="vae", domain=GPU, attached=True, draining=True, running=3, rows=2)
SUSPECT = WorkerStatus(worker_id="vae-3", kind="vae", domain=GPU, attached=True, suspect=True)
AWAY = WorkerStatus(worker_id="vae-2", kind="vae", domain=GPU)
REPLY = GetStatusResponse(
    pool="default",
    leader=True,
    policy="synerdiff",
    workers=[UNET, VAE, AWAY, SUSPECT],
    queues=[QueueStatus(model="stable-diffusion-xl-base-1.0", waiting=1200, running=12, decoding=3, oldest_age_s=7.25)],
    planning=[PlanningStatus(domain=GPU, model="sdxl", width=1024, height=1024, threshold=0.84, profile_digest="a")],
)


def shown(reply: GetStatusResponse, trouble: str = "", width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(frame(reply, "10.0.0.1:50051", datetime(2026, 1, 1, 12, 30), trouble))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_everything_is_readable_in_eighty_columns() -> None:
    lines = shown(REPLY)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 1 + 5 + 2 + 2
    assert lines[0] == "10.0.0.1:50051 leads pool default, policy synerdiff  12:30:00"
    assert lines[2].split() == ["…er-6d9f8c7b5d-x2x7k", "unet", "…f4c2d9e7b13", "12/64", "24", "12", "70%", "attached"]
    assert lines[3].split() == ["vae-1", "vae", "…f4c2d9e7b13", "2", "3", "draining"]
    assert [lines[at].split()[-1] for at in (4, 5)] == ["away", "suspect"]
    assert lines[7].split() == ["stable-diffusion-xl-base-1.0", "1200", "12", "3", "7.2", "s"]
    assert lines[9].split() == ["…e-9a51-0f4c2d9e7b13", "sdxl", "1024x1024", "0.84", "0", "0%"]


def test_a_scheduler_that_does_not_lead_says_so() -> None:
    assert "its leader's to tell" in shown(GetStatusResponse(pool="default"))[1]


async def test_it_goes_on_while_nobody_answers_and_recovers() -> None:
    answers: list[GetStatusResponse | None] = [REPLY, None, GetStatusResponse(pool="other", leader=True)]
    console = Console(file=io.StringIO(), width=80, force_terminal=True)

    async def ask() -> GetStatusResponse:
        if not answers:
            raise asyncio.CancelledError
        answer = answers.pop(0)
        if answer is None:
            raise Unavailable("no scheduler there")
        return answer

    with pytest.raises(asyncio.CancelledError):
        await watch(ask, console, "10.0.0.1:50051", every_s=0.0)
    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    assert written.index("pool default") < written.index("no answer: no scheduler there") < written.index("pool other")

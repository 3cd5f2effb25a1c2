"""Systems at rest: known by what they compute, and asleep while others are measured."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from bench.peers.systems import System, at_rest, cpu_s, until_quiet


@pytest.fixture
def busy() -> Iterator[int]:
    """A process that computes without end."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process.pid
    process.kill()
    process.wait()


async def test_who_rests_sleeps_and_is_awake_again_afterwards(busy: int) -> None:
    async with at_rest([System("scheduler", (), dozing=(busy,))]):
        await asyncio.sleep(0.2)
        assert psutil.Process(busy).status() == psutil.STATUS_STOPPED
        used_s = cpu_s([busy])
        await asyncio.sleep(0.2)
        assert cpu_s([busy]) == used_s
    assert psutil.Process(busy).status() != psutil.STATUS_STOPPED


async def test_quiet_is_who_computes_nothing(busy: int) -> None:
    assert not await until_quiet([System("works", (busy,))], within_s=0.5, still_s=0.2)
    psutil.Process(busy).suspend()
    assert await until_quiet([System("works", (busy,))], within_s=10, still_s=0.2)
